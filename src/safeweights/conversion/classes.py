"""Classes of libraries whose objects are data while they are loaded: `object.__new__`, then attributes.

A pickle makes such an object by NEWOBJ without arguments and one BUILD with a dictionary. What that runs
was read in the libraries' sources: nothing but the update of the object's attributes. (`__setstate__` of
scikit-learn's `BaseEstimator` compares versions; those of `torch.nn` add attributes that older files lack.)
Classes that have another `__new__`, `__reduce__` or `__setattr__`, or that build themselves in C from what
the file says (trees, nearest-neighbour indexes), are not here.

Read in scikit-learn 1.9.1 and PyTorch 2.13.
"""

from __future__ import annotations

from typing import Final

__all__ = ["ATTRIBUTE_CLASSES", "LOSSES"]

LOSSES: Final = (
    "AbsoluteError", "ExponentialLoss", "HalfBinomialLoss", "HalfGammaLoss", "HalfMultinomialLoss",
    "HalfPoissonLoss", "HalfSquaredError", "HalfTweedieLoss", "HalfTweedieLossIdentity", "HuberLoss",
    "PinballLoss",
)  # fmt: skip
"""Losses of scikit-learn: each has a class of attributes, and one in C that takes numbers."""

_SKLEARN: Final = """
    _loss.link: HalfLogitLink IdentityLink Interval LogLink LogitLink MultinomialLogit
    base: BaseEstimator
    calibration: CalibratedClassifierCV
    cluster._affinity_propagation: AffinityPropagation
    cluster._agglomerative: AgglomerativeClustering FeatureAgglomeration
    cluster._bicluster: SpectralBiclustering SpectralCoclustering
    cluster._birch: Birch
    cluster._bisect_k_means: BisectingKMeans
    cluster._dbscan: DBSCAN
    cluster._hdbscan.hdbscan: HDBSCAN
    cluster._kmeans: KMeans MiniBatchKMeans
    cluster._mean_shift: MeanShift
    cluster._optics: OPTICS
    cluster._spectral: SpectralClustering
    compose._column_transformer: ColumnTransformer
    compose._target: TransformedTargetRegressor
    covariance._elliptic_envelope: EllipticEnvelope
    covariance._empirical_covariance: EmpiricalCovariance
    covariance._graph_lasso: BaseGraphicalLasso GraphicalLasso GraphicalLassoCV
    covariance._robust_covariance: MinCovDet
    covariance._shrunk_covariance: LedoitWolf OAS ShrunkCovariance
    cross_decomposition._pls: CCA PLSCanonical PLSRegression PLSSVD
    decomposition._dict_learning: DictionaryLearning MiniBatchDictionaryLearning SparseCoder
    decomposition._factor_analysis: FactorAnalysis
    decomposition._fastica: FastICA
    decomposition._incremental_pca: IncrementalPCA
    decomposition._kernel_pca: KernelPCA
    decomposition._lda: LatentDirichletAllocation
    decomposition._nmf: MiniBatchNMF NMF
    decomposition._pca: PCA
    decomposition._sparse_pca: MiniBatchSparsePCA SparsePCA
    decomposition._truncated_svd: TruncatedSVD
    discriminant_analysis: LinearDiscriminantAnalysis QuadraticDiscriminantAnalysis
    dummy: DummyClassifier DummyRegressor
    ensemble._bagging: BaggingClassifier BaggingRegressor
    ensemble._forest: ExtraTreesClassifier ExtraTreesRegressor RandomForestClassifier
      RandomForestRegressor RandomTreesEmbedding
    ensemble._gb: GradientBoostingClassifier GradientBoostingRegressor
    ensemble._hist_gradient_boosting.gradient_boosting: HistGradientBoostingClassifier
      HistGradientBoostingRegressor
    ensemble._iforest: IsolationForest
    ensemble._stacking: StackingClassifier StackingRegressor
    ensemble._voting: VotingClassifier VotingRegressor
    ensemble._weight_boosting: AdaBoostClassifier AdaBoostRegressor
    feature_extraction._dict_vectorizer: DictVectorizer
    feature_extraction._hash: FeatureHasher
    feature_extraction.image: PatchExtractor
    feature_extraction.text: CountVectorizer HashingVectorizer TfidfTransformer TfidfVectorizer
    feature_selection._from_model: SelectFromModel
    feature_selection._rfe: RFE RFECV
    feature_selection._sequential: SequentialFeatureSelector
    feature_selection._univariate_selection: GenericUnivariateSelect SelectFdr SelectFpr SelectFwe
      SelectKBest SelectPercentile
    feature_selection._variance_threshold: VarianceThreshold
    frozen._frozen: FrozenEstimator
    gaussian_process._gpc: GaussianProcessClassifier
    gaussian_process._gpr: GaussianProcessRegressor
    impute._base: MissingIndicator SimpleImputer
    impute._iterative: IterativeImputer
    impute._knn: KNNImputer
    kernel_approximation: AdditiveChi2Sampler Nystroem PolynomialCountSketch RBFSampler
      SkewedChi2Sampler
    kernel_ridge: KernelRidge
    linear_model._base: LinearRegression
    linear_model._bayes: ARDRegression BayesianRidge
    linear_model._coordinate_descent: ElasticNet ElasticNetCV Lasso LassoCV MultiTaskElasticNet
      MultiTaskElasticNetCV MultiTaskLasso MultiTaskLassoCV
    linear_model._glm.glm: GammaRegressor PoissonRegressor TweedieRegressor
    linear_model._huber: HuberRegressor
    linear_model._least_angle: Lars LarsCV LassoLars LassoLarsCV LassoLarsIC
    linear_model._logistic: LogisticRegression LogisticRegressionCV
    linear_model._omp: OrthogonalMatchingPursuit OrthogonalMatchingPursuitCV
    linear_model._perceptron: Perceptron
    linear_model._quantile: QuantileRegressor
    linear_model._ransac: RANSACRegressor
    linear_model._ridge: Ridge RidgeCV RidgeClassifier RidgeClassifierCV
    linear_model._stochastic_gradient: SGDClassifier SGDOneClassSVM SGDRegressor
    linear_model._theil_sen: TheilSenRegressor
    manifold._classical_mds: ClassicalMDS
    manifold._isomap: Isomap
    manifold._locally_linear: LocallyLinearEmbedding
    manifold._mds: MDS
    manifold._spectral_embedding: SpectralEmbedding
    manifold._t_sne: TSNE
    mixture._bayesian_mixture: BayesianGaussianMixture
    mixture._gaussian_mixture: GaussianMixture
    model_selection._classification_threshold: BaseThresholdClassifier FixedThresholdClassifier
      TunedThresholdClassifierCV
    model_selection._search: GridSearchCV RandomizedSearchCV
    model_selection._search_successive_halving: HalvingGridSearchCV HalvingRandomSearchCV
    multiclass: OneVsOneClassifier OneVsRestClassifier OutputCodeClassifier
    multioutput: ClassifierChain MultiOutputClassifier MultiOutputRegressor RegressorChain
    naive_bayes: BernoulliNB CategoricalNB ComplementNB GaussianNB MultinomialNB
    neighbors._classification: KNeighborsClassifier RadiusNeighborsClassifier
    neighbors._graph: KNeighborsTransformer RadiusNeighborsTransformer
    neighbors._kde: KernelDensity
    neighbors._lof: LocalOutlierFactor
    neighbors._nca: NeighborhoodComponentsAnalysis
    neighbors._nearest_centroid: NearestCentroid
    neighbors._regression: KNeighborsRegressor RadiusNeighborsRegressor
    neighbors._unsupervised: NearestNeighbors
    neural_network._multilayer_perceptron: MLPClassifier MLPRegressor
    neural_network._rbm: BernoulliRBM
    neural_network._stochastic_optimizers: AdamOptimizer SGDOptimizer
    pipeline: FeatureUnion Pipeline
    preprocessing._data: Binarizer KernelCenterer MaxAbsScaler MinMaxScaler Normalizer PowerTransformer
      QuantileTransformer RobustScaler StandardScaler
    preprocessing._discretization: KBinsDiscretizer
    preprocessing._encoders: OneHotEncoder OrdinalEncoder
    preprocessing._function_transformer: FunctionTransformer
    preprocessing._label: LabelBinarizer LabelEncoder MultiLabelBinarizer
    preprocessing._polynomial: PolynomialFeatures SplineTransformer
    preprocessing._target_encoder: TargetEncoder
    random_projection: GaussianRandomProjection SparseRandomProjection
    semi_supervised._label_propagation: LabelPropagation LabelSpreading
    semi_supervised._self_training: SelfTrainingClassifier
    svm._classes: LinearSVC LinearSVR NuSVC NuSVR OneClassSVM SVC SVR
    tree._classes: DecisionTreeClassifier DecisionTreeRegressor ExtraTreeClassifier ExtraTreeRegressor
"""

_TORCH: Final = """
    activation: CELU ELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid
      LogSoftmax Mish MultiheadAttention PReLU RReLU ReLU ReLU6 SELU SiLU Sigmoid Softmax Softmax2d
      Softmin Softplus Softshrink Softsign Tanh Tanhshrink Threshold
    adaptive: AdaptiveLogSoftmaxWithLoss
    batchnorm: BatchNorm1d BatchNorm2d BatchNorm3d LazyBatchNorm1d LazyBatchNorm2d LazyBatchNorm3d
      SyncBatchNorm
    channelshuffle: ChannelShuffle
    container: ModuleDict ModuleList ParameterDict ParameterList Sequential
    conv: Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d
    distance: CosineSimilarity PairwiseDistance
    dropout: AlphaDropout Dropout Dropout1d Dropout2d Dropout3d FeatureAlphaDropout
    flatten: Flatten Unflatten
    fold: Fold Unfold
    instancenorm: InstanceNorm1d InstanceNorm2d InstanceNorm3d LazyInstanceNorm1d LazyInstanceNorm2d
      LazyInstanceNorm3d
    linear: Bilinear Identity LazyLinear Linear NonDynamicallyQuantizableLinear
    loss: BCELoss BCEWithLogitsLoss CTCLoss CosineEmbeddingLoss CrossEntropyLoss GaussianNLLLoss
      HingeEmbeddingLoss HuberLoss KLDivLoss L1Loss LinearCrossEntropyLoss MSELoss MarginRankingLoss
      MultiLabelMarginLoss MultiLabelSoftMarginLoss MultiMarginLoss NLLLoss PoissonNLLLoss SmoothL1Loss
      SoftMarginLoss TripletMarginLoss TripletMarginWithDistanceLoss
    module: Module
    normalization: CrossMapLRN2d GroupNorm LayerNorm LocalResponseNorm RMSNorm
    padding: CircularPad1d CircularPad2d CircularPad3d ConstantPad1d ConstantPad2d ConstantPad3d
      ReflectionPad1d ReflectionPad2d ReflectionPad3d ReplicationPad1d ReplicationPad2d ReplicationPad3d
      ZeroPad1d ZeroPad2d ZeroPad3d
    pixelshuffle: PixelShuffle PixelUnshuffle
    pooling: AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d
      AdaptiveMaxPool3d AvgPool1d AvgPool2d AvgPool3d FractionalMaxPool2d FractionalMaxPool3d LPPool1d
      LPPool2d LPPool3d MaxPool1d MaxPool2d MaxPool3d MaxUnpool1d MaxUnpool2d MaxUnpool3d
    rnn: GRU GRUCell LSTM LSTMCell RNN RNNCell RNNCellBase
    sparse: Embedding EmbeddingBag
    transformer: Transformer TransformerDecoder TransformerDecoderLayer TransformerEncoder
      TransformerEncoderLayer
    upsampling: Upsample UpsamplingBilinear2d UpsamplingNearest2d
"""


def _names(package: str, text: str) -> list[tuple[str, str]]:
    """``module: Class Class ...`` in lines, of which those that have no colon go on -> names."""
    found = []
    module = ""
    for word in text.split():
        if word.endswith(":"):
            module = f"{package}.{word[:-1]}"
        else:
            found.append((module, word))
    return found


ATTRIBUTE_CLASSES: Final = frozenset(
    _names("sklearn", _SKLEARN)
    + _names("torch.nn.modules", _TORCH)
    + [("sklearn._loss.loss", name) for name in LOSSES]
)
"""(module, name) of each class."""
