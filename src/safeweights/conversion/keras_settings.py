"""Configurations of Keras models: which classes, losses and metrics building one would look up.

Keras imports what a configuration names, and a Lambda layer holds code. A configuration is data if it names
Keras's own only, each of which takes values from it (the API index of keras.io; Keras 3.15).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ..errors import quote
from .grading import Grade
from .json_text import parse_json

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MAX_CONFIG", "class_findings", "keras_findings"]

MAX_CONFIG: Final = 64 << 20
"""Bytes of a configuration that are read."""

_CLASSES: Final = frozenset(
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

_LOOKUPS: Final = frozenset({"IntegerLookup", "StringLookup", "TextVectorization"})
_VALUES: Final = frozenset(
    {"__bytes__", "__ellipsis__", "__keras_tensor__", "__numpy__", "__slice__", "__tensor__", "__tuple__"}
)  # fmt: skip
"""Values that are no numbers or texts; ``__typespec__`` imports a module, and ``__lambda__`` holds code."""

_MEASURES: Final = frozenset(
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


def keras_findings(data: bytes) -> Iterator[tuple[Grade, str]]:
    """Grade and reason of each name in a configuration that is not known to hold values only.

    Raises:
        ValueError, RecursionError: It is not JSON, or has a key twice.
    """
    yield from class_findings(parse_json(data))


def class_findings(document: Any) -> Iterator[tuple[Grade, str]]:
    """The same for a configuration that was parsed."""
    seen: set[tuple[str, str]] = set()
    measured: set[str] = set()
    for node in _objects(document):
        yield from _measures(node, measured)
        class_name, module = node.get("class_name"), node.get("module")
        if not isinstance(class_name, str) or (class_name, str(module)) in seen:
            continue
        if class_name not in _LOOKUPS:  # of which each has a vocabulary of its own
            seen.add((class_name, str(module)))
        shown = quote(class_name, 60)
        if class_name in _LOOKUPS and (path := _vocabulary(node)) is not None:
            yield Grade.DANGEROUS, f"{shown} reads its vocabulary from {quote(path, 100)}"
        if class_name in {"Lambda", "__lambda__"} or module == "builtins":
            yield Grade.DANGEROUS, f"{shown} holds Python code or names a built-in"
        elif class_name not in _CLASSES | _VALUES:
            yield Grade.UNKNOWN, f"the class {shown} is not one of Keras's own"
        elif module is not None and not f"{module}.".startswith(("keras.", "tensorflow.keras.")):
            yield Grade.UNKNOWN, f"{shown} comes from the module {quote(str(module), 100)}"


def _vocabulary(node: dict[str, Any]) -> str | None:
    """The path of a vocabulary, which Keras opens and may fetch, instead of a list of words."""
    config = node.get("config")
    given = config.get("vocabulary") if isinstance(config, dict) else None
    return given if isinstance(given, str) else None


def _measures(node: dict[str, Any], seen: set[str]) -> Iterator[tuple[Grade, str]]:
    """The losses and metrics of a compiled model that are named and not Keras's own."""
    if not node.keys() & {"optimizer", "optimizer_config"}:
        return
    for key in ("loss", "metrics", "weighted_metrics"):
        names = node[key] if isinstance(node.get(key), list) else [node.get(key)]
        for name in names:
            if not isinstance(name, str) or name in seen or name.lower() in _MEASURES:
                continue
            if name not in _CLASSES:
                seen.add(name)
                yield Grade.UNKNOWN, f"the {key} {quote(name, 60)} is not one of Keras's own"


def _objects(document: Any) -> Iterator[dict[str, Any]]:
    """Every object at any depth; without recursion."""
    pending = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            yield value
            pending += value.values()
        elif isinstance(value, list):
            pending += value
