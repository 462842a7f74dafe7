"""Operations and layers of Keras without multiply-adds, by name.

An explicit list: what a later Keras adds is traced or unknown until it is listed here.
"""

# Classes of `keras.ops` and `keras.activations`: element by element; activations;
# normalisation, losses and statistics; sums, extremes, orders and counts; pooling and
# resampling; shapes, lookups and copies; constants.
_OPERATIONS = """
    Abs Absolute Add AllClose Angle Arccos Arccosh Arcsin Arcsinh Arctan Arctan2 Arctanh
    BitwiseAnd BitwiseInvert BitwiseLeftShift BitwiseNot BitwiseOr BitwiseRightShift
    BitwiseXor Cast Cbrt Ceil Clip Conj Conjugate Cos Cosh Deg2rad Divide DivideNoNan
    Equal Erf Erfc Erfinv Exp Exp2 Expm1 Fabs FakeQuantWithMinMaxVars Floor FloorDivide
    Fmax Fmin Fmod Gcd Greater GreaterEqual HSVToRGB Heaviside Hypot I0 Imag IsIn
    Isclose Isfinite Isinf Isnan Isneginf Isposinf Isreal Kron Lcm Ldexp LeftShift Less
    LessEqual Log Log10 Log1p Log2 Logaddexp Logaddexp2 LogicalAnd LogicalNot LogicalOr
    LogicalXor Maximum Minimum Mod Multiply NanToNum Negative Nextafter NotEqual Outer
    Polar Power RGBToHSV Rad2deg Real Reciprocal RightShift Round Rsqrt SaturateCast
    Select Sign Signbit Sin Sinc Sinh Sqrt Square Subtract Tan Tanh TrueDivide Trunc
    Vander ViewAsComplex ViewAsReal Where

    Celu Elu Gelu Glu HardShrink HardSigmoid HardSilu HardTanh LeakyRelu LogSigmoid
    LogSoftmax Mish ReLU Relu Relu6 Selu Sigmoid Silu SoftShrink Softmax Softplus
    Softsign SparsePlus SparseSigmoid Sparsemax Squareplus TanhShrink Threshold

    BatchNorm BinaryCrossentropy CategoricalCrossentropy LayerNorm Moments Norm
    Normalize PSNR RMSNorm SparseCategoricalCrossentropy

    All Amax Amin Any Argmax Argmin Argpartition Argsort Bincount CountNonzero Cumprod
    Cumsum Diff Digitize Histogram InTopK Logsumexp Max Mean Median Min Nanargmax
    Nanargmin Nancumprod Nancumsum Nanmax Nanmean Nanmedian Nanmin Nanpercentile Nanprod
    Nanquantile Nanstd Nansum Nanvar Percentile Prod Ptp Quantile SearchSorted
    SegmentMax SegmentMin SegmentProd SegmentReduction SegmentSum Sort Std Sum TopK
    Trace Unique Var

    AdaptiveAveragePool AdaptiveMaxPool AffineTransform AveragePool MapCoordinates
    MaxPool PerspectiveTransform Resize ScaleAndTranslate

    Append Array ArraySplit BroadcastTo Concatenate ConvertToTensor Copy CropImages
    DepthToSpace Diag Diagflat Diagonal Dsplit Dstack ExpandDims ExtractPatches
    ExtractSequences Flip Fliplr Flipud Fold GetItem Hsplit Hstack Meshgrid Moveaxis
    MultiHot Ndim Nonzero OneHot Pad PadImages Ravel Rearrange Repeat Reshape Roll Rot90
    Scatter ScatterUpdate Size Slice SliceUpdate SpaceToDepth Split Squeeze Stack
    StopGradient Swapaxes Take TakeAlongAxis Tile Transpose Tril Triu Unfold
    UnravelIndex Unstack View Vsplit Vstack

    Arange EmptyLike Full FullLike Geomspace Linspace Logspace OnesLike ZerosLike
"""

# Classes of `keras.layers`: lookups; activations; merging; normalisation; pooling;
# preprocessing, most of it in training only; regularisation; reshaping.
_LAYERS = """
    Embedding Identity InputLayer Masking

    Activation ELU LeakyReLU PReLU ReLU Softmax

    Add Average Concatenate Maximum Minimum Multiply Subtract

    BatchNormalization GroupNormalization LayerNormalization RMSNormalization
    UnitNormalization

    AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D
    AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D AveragePooling1D
    AveragePooling2D AveragePooling3D GlobalAveragePooling1D GlobalAveragePooling2D
    GlobalAveragePooling3D GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D
    MaxPooling1D MaxPooling2D MaxPooling3D

    AugMix AutoContrast CategoryEncoding CenterCrop
    ContrastLimitedAdaptiveHistogramEqualization CutMix Discretization Equalization
    HashedCrossing Hashing IntegerLookup MaxNumBoundingBoxes MixUp Normalization
    RandAugment RandomBrightness RandomColorDegeneration RandomColorJitter
    RandomContrast RandomCrop RandomElasticTransform RandomErasing RandomFlip
    RandomGaussianBlur RandomGrayscale RandomHue RandomInvert RandomPerspective
    RandomPosterization RandomRotation RandomSaturation RandomSharpness RandomShear
    RandomTranslation RandomZoom Rescaling Resizing Solarization StringLookup
    TextVectorization

    ActivityRegularization AlphaDropout Dropout GaussianDropout GaussianNoise
    SpatialDropout1D SpatialDropout2D SpatialDropout3D

    Cropping1D Cropping2D Cropping3D Flatten Permute RepeatVector Reshape UpSampling1D
    UpSampling2D UpSampling3D ZeroPadding1D ZeroPadding2D ZeroPadding3D
"""

FREE_OPERATIONS = frozenset(_OPERATIONS.split())
FREE_LAYERS = frozenset(_LAYERS.split())
