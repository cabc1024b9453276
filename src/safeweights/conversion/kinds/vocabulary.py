"""Names that are known to build or compute data: operators of TensorFlow, classes of Keras."""

from __future__ import annotations

from typing import Final

__all__ = ["KERAS_CLASSES", "KERAS_MEASURES", "TENSORFLOW_OPERATORS"]

TENSORFLOW_OPERATORS: Final = frozenset(
    """
    Abs Add AddN AddV2 All Any ApproximateEqual ArgMax ArgMin AsString Assert Assign
    AssignAddVariableOp AssignSubVariableOp AssignVariableOp AvgPool AvgPool3D BatchMatMul
    BatchMatMulV2 BatchMatMulV3 BatchToSpaceND BiasAdd BiasAddGrad Bincount Bitcast
    BroadcastArgs BroadcastTo Bucketize Case Cast Ceil CheckNumerics CheckNumericsV2 Cholesky
    ClipByValue Complex ComplexAbs Concat ConcatV2 Const Conv2D Conv2DBackpropInput Conv3D Cos
    Cosh Cumprod Cumsum DecodeBase64 DecodeJpeg DecodePng DecodeRaw DenseBincount DepthToSpace
    DepthwiseConv2dNative DestroyResourceOp Diag DiagPart DisableCopyOnRead Div DivNoNan DynamicPartition
    DynamicStitch Einsum Elu EncodeBase64 EnsureShape Equal Erf Erfc Exp ExpandDims Expm1
    FakeQuantWithMinMaxVars Fill Floor FloorDiv FloorMod FusedBatchNorm FusedBatchNormV2
    FusedBatchNormV3 Gather GatherNd GatherV2 Greater GreaterEqual HashTableV2 Identity
    IdentityN If ImmutableConst InitializeTableV2 InvertPermutation IsFinite IsInf IsNan
    IsVariableInitialized LRN LeakyRelu Less LessEqual LinSpace Log Log1p LogSoftmax LogicalAnd
    LogicalNot LogicalOr LookupTableExportV2 LookupTableFindV2 LookupTableImportV2
    LookupTableInsertV2 LookupTableSizeV2 LoopCond MatMul MatrixBandPart MatrixDiag
    MatrixDiagPartV3 MatrixDiagV3 MatrixInverse MatrixSetDiagV3 Max MaxPool MaxPool3D Maximum
    Mean Merge MergeV2Checkpoints Min Minimum MirrorPad Mod Mul MulNoNan MutableHashTableV2
    NcclAllReduce Neg NextIteration NoOp NonMaxSuppressionV3 NonMaxSuppressionV4
    NonMaxSuppressionV5 NotEqual OneHot OnesLike Pack Pad PadV2 ParseExample ParseExampleV2
    ParseSingleExample PartitionedCall Placeholder PlaceholderWithDefault Pow PreventGradient
    Prod Qr QuantizeAndDequantizeV2 RaggedRange RaggedTensorToTensor RandomStandardNormal
    RandomUniform RandomUniformInt Range Rank ReadVariableOp Real RealDiv Reciprocal ReduceJoin
    RefIdentity RegexFullMatch RegexReplace Relu Relu6 Reshape ResizeBicubic ResizeBilinear
    ResizeNearestNeighbor ResourceApplyAdam ResourceGather ResourceScatterAdd
    ResourceScatterUpdate RestoreV2 ReverseSequence ReverseV2 RightShift Rint Roll Round Rsqrt
    SaveV2 ScatterNd SegmentMax SegmentMean SegmentSum Select SelectV2 Selu Shape ShapeN
    ShardedFilename ShardedFilespec Sigmoid Sign Sin Sinh Size Slice Softmax
    SoftmaxCrossEntropyWithLogits Softplus Softsign SpaceToBatchND SpaceToDepth
    SparseSoftmaxCrossEntropyWithLogits SparseTensorDenseMatMul SparseToDense Split SplitV Sqrt
    Square SquaredDifference Squeeze StackPopV2 StackPushV2 StackV2 StatefulPartitionedCall
    StatefulRandomBinomial StatelessIf StatelessRandomNormalV2 StatelessRandomUniformV2
    StatelessWhile StaticRegexFullMatch StaticRegexReplace StopGradient StridedSlice
    StridedSliceGrad StringFormat StringJoin StringLength StringLower StringSplit StringSplitV2
    StringStrip StringToHashBucketFast StringToNumber StringUpper Sub Substr Sum Switch Tan Tanh
    TensorListConcatV2 TensorListFromTensor TensorListGetItem TensorListLength TensorListReserve
    TensorListSetItem TensorListStack Tile TopK TopKV2 Transpose TruncateDiv Unique UniqueV2
    Unpack UnsortedSegmentMax UnsortedSegmentSum VarHandleOp VarIsInitializedOp Variable
    VariableShape VariableV2 Where While Xdivy Xlogy ZerosLike _FusedConv2D _FusedMatMul
    """.split()  # noqa: SIM905 - a list of 300 quoted words cannot be read
)
"""Operators that compute, keep variables, or save and restore the model's own (TensorFlow 2.21)."""

KERAS_CLASSES: Final = frozenset(
    """
    AUC Accuracy Activation ActivityRegularization Adadelta Adagrad Adam AdamW Adamax Add
    AdditiveAttention AlphaDropout Attention Average AveragePooling1D AveragePooling2D
    AveragePooling3D BatchNormalization Bidirectional BinaryAccuracy BinaryCrossentropy
    CategoricalAccuracy CategoricalCrossentropy CategoryEncoding CenterCrop Concatenate Constant
    Conv1D Conv1DTranspose Conv2D Conv2DTranspose Conv3D Conv3DTranspose ConvLSTM1D ConvLSTM2D
    ConvLSTM3D CosineDecay CosineSimilarity Cropping1D Cropping2D Cropping3D DTypePolicy Default
    Dense DepthwiseConv1D DepthwiseConv2D Discretization Dot Dropout ELU Einsum EinsumDense
    Embedding ExponentialDecay Flatten Ftrl Functional GRU GRUCell GaussianDropout GaussianNoise
    GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D GlobalMaxPooling1D
    GlobalMaxPooling2D GlobalMaxPooling3D GlorotNormal GlorotUniform GroupNormalization
    GroupQueryAttention HashedCrossing Hashing HeNormal HeUniform Hinge Huber Identity
    InputLayer IntegerLookup KLDivergence L1 L1L2 L2 LSTM LSTMCell LayerNormalization LeakyReLU
    LecunNormal LecunUniform Lion LogCosh LossScaleOptimizer Masking MaxNorm MaxPooling1D
    MaxPooling2D MaxPooling3D Maximum Mean MeanAbsoluteError MeanSquaredError MelSpectrogram
    MinMaxNorm Minimum Model MultiHeadAttention Multiply Nadam NonNeg Normalization Ones
    Orthogonal PReLU Permute Poisson Policy Precision RMSNormalization RMSprop RNN
    RandomBrightness RandomContrast RandomCrop RandomFlip RandomHeight RandomNormal
    RandomRotation RandomTranslation RandomUniform RandomWidth RandomZoom ReLU Recall
    RepeatVector Rescaling Reshape Resizing RootMeanSquaredError SGD SeparableConv1D
    SeparableConv2D Sequential SimpleRNN SimpleRNNCell Softmax SparseCategoricalAccuracy
    SparseCategoricalCrossentropy SpatialDropout1D SpatialDropout2D SpatialDropout3D
    SpectralNormalization StackedRNNCells StringLookup Subtract TextVectorization
    ThresholdedReLU TimeDistributed TruncatedNormal UnitNorm UnitNormalization UpSampling1D
    UpSampling2D UpSampling3D VarianceScaling ZeroPadding1D ZeroPadding2D ZeroPadding3D Zeros
    BinaryFocalCrossentropy BinaryIoU CTC CategoricalFocalCrossentropy CategoricalHinge Circle
    ConcordanceCorrelation Dice F1Score FBetaScore FalseNegatives FalsePositives IoU
    LogCoshError MeanAbsolutePercentageError MeanIoU MeanMetricWrapper
    MeanSquaredLogarithmicError OneHotIoU OneHotMeanIoU PearsonCorrelation PrecisionAtRecall
    R2Score RecallAtPrecision SensitivityAtSpecificity SparseTopKCategoricalAccuracy
    SpecificityAtSensitivity SquaredHinge Sum TopKCategoricalAccuracy TrueNegatives
    TruePositives Tversky
    """.split()  # noqa: SIM905 - a list of 300 quoted words cannot be read
)
"""Classes whose configuration holds values only (the API index of keras.io)."""

KERAS_MEASURES: Final = frozenset(
    """
    acc accuracy auc bce binary_accuracy binary_crossentropy binary_focal_crossentropy
    binary_io_u categorical_accuracy categorical_crossentropy categorical_focal_crossentropy
    categorical_hinge circle concordance_correlation cosine_similarity crossentropy ctc dice
    f1_score f_beta_score false_negatives false_positives hinge huber io_u kl_divergence kld
    log_cosh log_cosh_error logcosh mae mape mean mean_absolute_error
    mean_absolute_percentage_error mean_io_u mean_squared_error mean_squared_logarithmic_error
    mse msle one_hot_io_u one_hot_mean_io_u pearson_correlation poisson precision
    precision_at_recall r2_score recall recall_at_precision root_mean_squared_error
    sensitivity_at_specificity sparse_categorical_accuracy sparse_categorical_crossentropy
    sparse_top_k_categorical_accuracy specificity_at_sensitivity squared_hinge sum
    top_k_categorical_accuracy true_negatives true_positives tversky
    """.split()  # noqa: SIM905 - a list of 60 quoted words cannot be read
)
"""Names of Keras's own losses and metrics, as `compile` takes them (Keras 3.15)."""
