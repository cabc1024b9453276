"""Names that are known to compute data: operators of TensorFlow."""

from __future__ import annotations

from typing import Final

__all__ = ["TENSORFLOW_OPERATORS"]

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
    IdentityN If InitializeTableV2 InvertPermutation IsFinite IsInf IsNan
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
