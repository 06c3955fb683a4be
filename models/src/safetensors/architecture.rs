//! Architectures as PyTorch's users write them.

use sepal_core::layer::{
    AvgPoolTo, BatchNorm, Conv2d, Dense, Dropout, Flatten, GlobalAvgPool, Layer, MaxPool,
    Projection, RELU, Residual, Role, Window,
};
use sepal_core::plan::PlanError;
use sepal_core::shape::Shape;

use super::SafetensorsError;
use super::modules::{Kind, Module, Modules};

/// How layers follow each other. A file of weights says the rest: channels, kernels, groups, biases,
/// whether norms stand behind the convolutions, and how many dense layers there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum Architecture {
    /// Two convolutions, each with ReLU and a 2x2 max-pool; dense layers with ReLU between them. The
    /// first is padded by half its kernel where the dense layers need that.
    LeNet,
    /// torchvision's `alexnet`, for images of 224x224.
    AlexNet,
    /// torchvision's `vgg11`, `vgg13`, `vgg16` and `vgg19`, with `_bn` or without; and the forms for
    /// images of 32x32, whose dense layers differ.
    Vgg {
        /// Convolutions and dense layers, 11, 13, 16 or 19.
        depth: u8,
    },
    /// MobileNet (Howard et al., arXiv 1704.04861): a convolution and 13 pairs of a depthwise one and
    /// one of 1x1, a mean over the plane and one dense layer.
    MobileNet {
        /// The first convolution's step: 2 for images of 224x224, 1 is usual for 32x32.
        stride: u8,
    },
    /// torchvision's `resnet18` and `resnet34`, and nets of such units with the names of their modules:
    /// as many units in each of `layer1`, `layer2` and so on as the file has, each of two convolutions.
    /// Norms behind shortcuts go into their convolutions.
    ResNet {
        /// A first convolution's step of 2 and a pool, for images of 224x224; otherwise neither.
        large: bool,
    },
}

/// Steps of MobileNet's depthwise convolutions.
const STEPS: [u8; 13] = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1];

/// A pool of 2x2 that moves by its size.
const HALF: Layer = Layer::MaxPool(MaxPool::new(2));

/// AlexNet's pool.
const OVERLAPPING: Layer =
    Layer::MaxPool(MaxPool { window: Window { kernel: (3, 3), stride: (2, 2), pad: (0, 0) } });

const DROPOUT: Layer = Layer::Dropout(Dropout { rate: 0.5 });

impl Architecture {
    /// All names that [`named`](Self::named) knows.
    pub const NAMES: [&str; 10] = [
        "lenet",
        "alexnet",
        "vgg11",
        "vgg13",
        "vgg16",
        "vgg19",
        "mobilenet",
        "mobilenet-cifar",
        "resnet",
        "resnet-cifar",
    ];

    /// The architecture of a name.
    ///
    /// ```
    /// use sepal_models::safetensors::Architecture;
    /// assert_eq!(Architecture::named("vgg16"), Some(Architecture::Vgg { depth: 16 }));
    /// assert!(Architecture::NAMES.into_iter().all(|name| Architecture::named(name).is_some()));
    /// ```
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "lenet" => Self::LeNet,
            "alexnet" => Self::AlexNet,
            "vgg11" => Self::Vgg { depth: 11 },
            "vgg13" => Self::Vgg { depth: 13 },
            "vgg16" => Self::Vgg { depth: 16 },
            "vgg19" => Self::Vgg { depth: 19 },
            "mobilenet" => Self::MobileNet { stride: 2 },
            "mobilenet-cifar" => Self::MobileNet { stride: 1 },
            "resnet" => Self::ResNet { large: true },
            "resnet-cifar" => Self::ResNet { large: false },
            _ => return None,
        })
    }

    /// The layers for the weights of `modules` and samples of shape `sample`.
    pub(super) fn layers(
        self,
        modules: &Modules<'_>,
        sample: Shape,
    ) -> Result<Vec<Layer>, SafetensorsError> {
        let first = modules.of(Kind::Dense).next().and_then(|dense| dense.shape().get(1).copied());
        let mut build = Build::new(modules, sample);
        match self {
            Self::LeNet => {
                for padded in [false, true] {
                    build = Build::new(modules, sample);
                    build.conv((1, 1), padded)?.layer(HALF)?;
                    build.conv((1, 1), false)?.layer(HALF)?;
                    if build.shape.sample().map(|features| features as usize) == first {
                        break;
                    }
                }
            }
            Self::AlexNet => {
                build.padded((4, 4), |_| 2)?.layer(OVERLAPPING)?;
                build.conv((1, 1), true)?.layer(OVERLAPPING)?;
                build.conv((1, 1), true)?.conv((1, 1), true)?.conv((1, 1), true)?;
                build.layer(OVERLAPPING)?;
            }
            Self::Vgg { depth } => {
                let convs = match depth {
                    11 => [1, 1, 2, 2, 2],
                    13 => [2; 5],
                    16 => [2, 2, 3, 3, 3],
                    _ => [2, 2, 4, 4, 4],
                };
                for count in convs {
                    for _ in 0..count {
                        build.conv((1, 1), true)?;
                    }
                    build.layer(HALF)?;
                }
            }
            Self::MobileNet { stride } => {
                build.conv((stride, stride), true)?;
                for step in STEPS {
                    build.conv((step, step), true)?.conv((1, 1), true)?;
                }
                build.layer(Layer::GlobalAvgPool(GlobalAvgPool))?;
            }
            Self::ResNet { .. } => {}
        }
        if let Self::ResNet { large } = self {
            build.resnet(large)?;
        }
        if matches!(self, Self::AlexNet | Self::Vgg { .. }) {
            build.adapt(first)?;
        }
        build.layer(Layer::Flatten(Flatten))?;
        let dense: Vec<&Module<'_>> = modules.of(Kind::Dense).collect();
        for (at, module) in (1..).zip(&dense) {
            let hidden = at < dense.len();
            if hidden && self == Self::AlexNet {
                build.layer(DROPOUT)?;
            }
            let units = module.shape().first().and_then(|&units| u32::try_from(units).ok());
            let (units, bias) = (units.unwrap_or(0), module.has(Role::Bias));
            build.layer(Layer::Dense(Dense { units, bias }))?;
            if hidden {
                build.layer(RELU)?;
            }
            if hidden && matches!(self, Self::Vgg { .. }) {
                build.layer(DROPOUT)?;
            }
        }
        Ok(build.layers)
    }
}

/// Layers as far as they are known.
struct Build<'m> {
    modules: &'m Modules<'m>,
    convs: usize,
    shape: Shape,
    layers: Vec<Layer>,
}

impl<'m> Build<'m> {
    fn new(modules: &'m Modules<'m>, shape: Shape) -> Self {
        Self { modules, convs: 0, shape, layers: Vec::new() }
    }

    fn layer(&mut self, layer: Layer) -> Result<&mut Self, PlanError> {
        let unfit = PlanError::Shape { layer: self.layers.len(), input: self.shape };
        self.shape = layer.output(self.shape).ok_or(unfit)?;
        self.layers.push(layer);
        Ok(self)
    }

    /// The next convolution, padded by half its kernel or not at all.
    fn conv(&mut self, stride: (u8, u8), padded: bool) -> Result<&mut Self, SafetensorsError> {
        self.padded(stride, |kernel| if padded { kernel / 2 } else { 0 })
    }

    /// A convolution, units of two as far as there are modules, and a mean over the plane. The first
    /// convolution of each group of units but the first has a step of 2.
    fn resnet(&mut self, large: bool) -> Result<(), SafetensorsError> {
        let step = |two: bool| if two { (2, 2) } else { (1, 1) };
        self.conv(step(large), true)?;
        if large {
            let window = Window { kernel: (3, 3), stride: (2, 2), pad: (1, 1) };
            self.layer(Layer::MaxPool(MaxPool { window }))?;
        }
        // Names of the modules of units, such as `layer2.0.conv1`.
        let firsts: Vec<String> = self
            .modules
            .of(Kind::Conv)
            .filter_map(|module| module.name.strip_suffix(".conv1").map(str::to_owned))
            .filter(|name| name.contains('.'))
            .collect();
        for unit in firsts {
            let (from, first) = (self.shape, self.layers.len());
            let halves = unit.ends_with(".0") && !unit.ends_with("layer1.0");
            self.conv(step(halves), true)?.conv((1, 1), true)?;
            // The sum stands between norm and ReLU.
            self.layers.pop();
            let shortcut = self.modules.named(&format!("{unit}.downsample.0")).is_some();
            let project = shortcut.then_some(Projection { channels: from.c, stride: step(halves) });
            let back = (self.layers.len() - first) as u8;
            self.layer(Layer::Residual(Residual { back, project }))?.layer(RELU)?;
        }
        Ok(self.layer(Layer::GlobalAvgPool(GlobalAvgPool)).map(|_| ())?)
    }

    /// The next convolution with its norm, where there are norms, and ReLU.
    fn padded(
        &mut self,
        stride: (u8, u8),
        pad: impl Fn(u8) -> u8,
    ) -> Result<&mut Self, SafetensorsError> {
        let layer = self.layers.len();
        let missing = || SafetensorsError::Missing {
            layer,
            name: "conv2d",
            taken: self.modules.of(Kind::Conv).map(|module| module.name.clone()).collect(),
        };
        let module = self.modules.of(Kind::Conv).nth(self.convs).ok_or_else(missing)?;
        let wrong = |reason: &str| SafetensorsError::Tensor {
            tensor: format!("{}.weight", module.name),
            reason: format!("shape {:?}, {reason}", module.shape()),
        };
        let &[filters, channels, r, s] = module.shape() else {
            return Err(wrong("expected that of a convolution over planes"));
        };
        let (Ok(filters), Ok(channels), Ok(r), Ok(s)) =
            (u32::try_from(filters), u32::try_from(channels), u8::try_from(r), u8::try_from(s))
        else {
            return Err(wrong("expected kernels of at most 255 places"));
        };
        // Each filter reads the channels of one group.
        let groups = match self.shape.c.checked_rem(channels) {
            Some(0) => self.shape.c / channels,
            _ => return Err(wrong(&format!("expected filters of {} channels", self.shape.c))),
        };
        let (kernel, bias) = ((r, s), module.has(Role::Bias));
        let conv = Conv2d { filters, kernel, stride, pad: (pad(r), pad(s)), groups, bias };
        self.layer(Layer::Conv2d(conv))?;
        if let Some(norm) = self.modules.of(Kind::Norm).nth(self.convs) {
            let affine = norm.has(Role::Weight);
            self.layer(Layer::BatchNorm(BatchNorm { affine, ..BatchNorm::new() }))?;
        }
        self.convs += 1;
        Ok(self.layer(RELU)?)
    }

    /// Means of bins, where the first dense layer reads `features` numbers of a square that is
    /// smaller than the plane.
    fn adapt(&mut self, features: Option<usize>) -> Result<(), PlanError> {
        let Shape { c, h, w, .. } = self.shape;
        let places = features.and_then(|features| features.checked_div(c as usize)).unwrap_or(0);
        let side = u8::try_from(places.isqrt()).unwrap_or(0);
        let smaller = u32::from(side) <= h.min(w) && (h, w) != (side.into(), side.into());
        if side > 0 && usize::from(side) * usize::from(side) == places && smaller {
            self.layer(Layer::AvgPoolTo(AvgPoolTo { h: side, w: side }))?;
        }
        Ok(())
    }
}
