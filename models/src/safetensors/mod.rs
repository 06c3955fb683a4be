//! Nets from and for PyTorch, as safetensors.
//!
//! Such a file has tensors with names and no layers. [`read`] takes the layers from a net that is
//! given, [`read_as`] from a known [`Architecture`]. Tensors that lie beside each other under one name,
//! such as `features.0.weight` and `features.0.bias`, are a module: convolutions, norms and dense
//! layers each take the modules of their kind, in the order of their names, numbers in names by
//! their value. Shapes are checked, and every tensor must find its place.
//!
//! PyTorch's layout is that of core: kernels (K, C / G, R, S), dense weights (U, D) with the channels
//! of a flattened plane outermost. Nothing is transposed.
//!
//! ```
//! use sepal_models::{fit::Fit, lenet::LENET5, safetensors};
//! use sepal_models::safetensors::Architecture;
//!
//! let fit = Fit::new(LENET5, 0)?;
//! let bytes = safetensors::write(&fit.model())?;
//! let back = safetensors::read(&bytes, LENET5)?;
//! assert_eq!(back.names()[3], "3");
//! let shape = LENET5.input.shape;
//! assert_eq!(safetensors::read_as(&bytes, Architecture::LeNet, shape)?.model().net, LENET5);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod architecture;
mod modules;

use std::collections::HashMap;

use ::safetensors::tensor::{Dtype, TensorView};
use ::safetensors::{SafeTensorError, SafeTensors};
use sepal_core::layer::{BatchNorm, Conv2d, Layer, Residual, Role};
use sepal_core::net::{Input, Model, Net, Normalisation};
use sepal_core::plan::PlanError;
use sepal_core::shape::Shape;

pub use architecture::Architecture;
use modules::{Kind, Module, Modules};

use crate::imported::{Ending, Imported, Piece, fold_norm};

/// Why bytes are no weights of a net, or a net no bytes.
#[derive(Debug)]
#[non_exhaustive]
pub enum SafetensorsError {
    /// The file is none.
    File(SafeTensorError),
    /// A tensor that is not what its layer needs.
    Tensor {
        /// Its name.
        tensor: String,
        /// What is wrong.
        reason: String,
    },
    /// A layer that no module is left for.
    Missing {
        /// The layer.
        layer: usize,
        /// Its name.
        name: &'static str,
        /// The modules of its kind that the file has, which other layers took.
        taken: Vec<String>,
    },
    /// Modules that no layer takes: all of them.
    Left(Vec<String>),
    /// Weights of a layer that are missing.
    Weights {
        /// The layer.
        layer: usize,
    },
    /// The net is none.
    Plan(PlanError),
}

impl std::fmt::Display for SafetensorsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(error) => write!(f, "no safetensors: {error}"),
            Self::Tensor { tensor, reason } => write!(f, "tensor `{tensor}`: {reason}"),
            Self::Missing { layer, name, taken } => {
                write!(f, "layer {layer}, {name}: no module of its kind is left")?;
                match taken.as_slice() {
                    [] => write!(f, ", the file has none"),
                    taken => write!(f, ", taken are {}", taken.join(", ")),
                }
            }
            Self::Left(modules) => {
                let (count, names) = (modules.len(), modules.join(", "));
                write!(f, "{count} modules have no layer in this architecture: {names}")
            }
            Self::Weights { layer } => write!(f, "layer {layer}: its weights are missing"),
            Self::Plan(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for SafetensorsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::File(error) => Some(error),
            Self::Plan(error) => Some(error),
            _ => None,
        }
    }
}

impl From<PlanError> for SafetensorsError {
    fn from(error: PlanError) -> Self {
        Self::Plan(error)
    }
}

impl From<SafeTensorError> for SafetensorsError {
    fn from(error: SafeTensorError) -> Self {
        Self::File(error)
    }
}

/// Reads the weights of `net`.
///
/// [`Standardise`](sepal_core::layer::Standardise) changes nothing where the file has no module for
/// it: PyTorch has no such layer.
///
/// # Errors
/// A file that is none; tensors that do not fit, are missing, have no layer, or hold what is no
/// finite number.
pub fn read(bytes: &[u8], net: Net<'_>) -> Result<Imported, SafetensorsError> {
    net.check()?;
    let file = SafeTensors::deserialize(bytes)?;
    Ok(assign(&mut Modules::new(&file)?, net.input, net.layers)?.cut_as(net))
}

/// Reads a net of a known architecture for samples of shape `sample`; how wide its layers are, which
/// have a bias, and whether there are norms is what the file says.
///
/// # Errors
/// As [`read`].
pub fn read_as(
    bytes: &[u8],
    architecture: Architecture,
    sample: Shape,
) -> Result<Imported, SafetensorsError> {
    let file = SafeTensors::deserialize(bytes)?;
    let mut modules = Modules::new(&file)?;
    let layers = architecture.layers(&modules, sample)?;
    assign(&mut modules, Input { shape: sample, normalisation: Normalisation::NONE }, &layers)
}

fn assign(
    modules: &mut Modules<'_>,
    input: Input,
    layers: &[Layer],
) -> Result<Imported, SafetensorsError> {
    let mut shape = input.shape;
    let mut pieces = Vec::new();
    for (at, layer) in layers.iter().enumerate() {
        let unfit = PlanError::Shape { layer: at, input: shape };
        let out = layer.output(shape).ok_or(unfit)?;
        let mut piece =
            Piece { layer: *layer, name: layer.name().to_owned(), numbers: Default::default() };
        if let Some(kind) = Kind::of(layer) {
            match modules.take(kind) {
                Some(module) if kind == Kind::Shortcut => {
                    let norm = modules.norm_of(&module.name);
                    project(&mut piece, &module, norm.as_ref(), shape)?;
                }
                // A net that was written in a row has its shortcuts among its convolutions.
                None if kind == Kind::Shortcut => match modules.take(Kind::Conv) {
                    Some(module) => project(&mut piece, &module, None, shape)?,
                    None => {
                        let (name, taken) = (layer.name(), modules.taken(Kind::Conv));
                        return Err(SafetensorsError::Missing { layer: at, name, taken });
                    }
                },
                Some(module) => fill(&mut piece, &module, layer, shape)?,
                None if kind == Kind::Standardise => {
                    let features = shape.sample().unwrap_or(0) as usize;
                    piece.numbers = [vec![], vec![], vec![0.0; features], vec![1.0; features]];
                }
                None => {
                    let (name, taken) = (layer.name(), modules.taken(kind));
                    return Err(SafetensorsError::Missing { layer: at, name, taken });
                }
            }
        }
        pieces.push(piece);
        shape = out;
    }
    let left = modules.left();
    if !left.is_empty() {
        return Err(SafetensorsError::Left(left));
    }
    Ok(Imported::new(input, pieces, Ending::Logits)?)
}

/// Gives a layer the tensors of a module.
fn fill(
    piece: &mut Piece,
    module: &Module<'_>,
    layer: &Layer,
    x: Shape,
) -> Result<(), SafetensorsError> {
    piece.name = module.name.to_owned();
    let tensors = layer.tensors(x).unwrap_or_default();
    for (role, numbers) in Role::ALL.into_iter().zip(&mut piece.numbers) {
        let expected = tensors.len(role);
        let (tensor, reason) = match module.tensor(role) {
            None if expected == 0 => continue,
            Some(tensor) => {
                let dims = dims(layer, role, x, tensor.view.shape().len());
                if expected > 0 && tensor.view.shape() == dims {
                    *numbers = tensor.numbers()?;
                    continue;
                }
                let found = tensor.view.shape();
                let expected = match expected {
                    0 => "that it is not there".to_owned(),
                    _ => format!("{dims:?}"),
                };
                (tensor.name.to_owned(), format!("shape {found:?}, expected {expected}"))
            }
            None => (format!("{} ({role:?})", module.name), "it is not there".to_owned()),
        };
        let Shape { c, h, w, .. } = x;
        let of = format!("as {} has it for samples of {c}x{h}x{w}", layer.name());
        return Err(SafetensorsError::Tensor { tensor, reason: format!("{reason}, {of}") });
    }
    Ok(())
}

/// Gives a residual addition the tensors of its projection, and of the norm behind that.
fn project(
    piece: &mut Piece,
    module: &Module<'_>,
    norm: Option<&Module<'_>>,
    x: Shape,
) -> Result<(), SafetensorsError> {
    let Layer::Residual(Residual { project: Some(project), .. }) = piece.layer else {
        return Ok(());
    };
    let (of, layer) = (Shape { c: project.channels, ..x }, piece.layer);
    let conv = Conv2d { bias: module.has(Role::Bias), ..project.conv(x.c) };
    fill(piece, module, &Layer::Conv2d(conv), of)?;
    let [weight, bias, ..] = &mut piece.numbers;
    bias.resize(x.c as usize, 0.0);
    if let Some(norm) = norm {
        let affine = norm.has(Role::Weight);
        let own = BatchNorm { affine, ..BatchNorm::new() };
        let mut of_norm = Piece { layer, name: String::new(), numbers: Default::default() };
        fill(&mut of_norm, norm, &Layer::BatchNorm(own), x)?;
        if !affine {
            let [gamma, beta, ..] = &mut of_norm.numbers;
            gamma.resize(x.c as usize, 1.0);
            beta.resize(x.c as usize, 0.0);
        }
        fold_norm(&of_norm.numbers, own.eps, weight, bias).map_err(|reason| {
            let tensor = format!("{}.running_var", norm.name);
            SafetensorsError::Tensor { tensor, reason }
        })?;
    }
    Ok(())
}

/// The shape that PyTorch gives a parameter. Kernels of one row may have three sizes.
fn dims(layer: &Layer, role: Role, x: Shape, rank: usize) -> Vec<usize> {
    let tensors = layer.tensors(x).unwrap_or_default();
    match (*layer, role) {
        (Layer::Conv2d(conv), Role::Weight) => {
            let (filters, group) = (conv.filters as usize, (x.c / conv.groups.max(1)) as usize);
            let (r, s) = (usize::from(conv.kernel.0), usize::from(conv.kernel.1));
            match (rank, r) {
                (3, 1) => vec![filters, group, s],
                _ => vec![filters, group, r, s],
            }
        }
        (Layer::Dense(dense), Role::Weight) => {
            vec![dense.units as usize, x.sample().unwrap_or(0) as usize]
        }
        (Layer::Residual(Residual { project: Some(project), .. }), Role::Weight) => {
            vec![x.c as usize, project.channels as usize, 1, 1]
        }
        _ => vec![tensors.len(role) as usize],
    }
}

/// Writes the weights of a net, with the names that `torch.nn.Sequential` gives the same layers:
/// the layer's number, then `weight`, `bias`, `running_mean` and `running_var`; `mean` and `variance`
/// of a [`Standardise`](sepal_core::layer::Standardise). Weights are f32, whatever they are stored as.
///
/// # Errors
/// A net that is none, weights that are missing.
pub fn write(model: &Model<'_>) -> Result<Vec<u8>, SafetensorsError> {
    let net = model.net;
    net.check()?;
    let mut all: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for (at, layer) in net.layers.iter().enumerate() {
        let x = net.shape(at)?;
        let tensors = layer.tensors(x).unwrap_or_default();
        for (role, stored) in Role::ALL.into_iter().zip(model.weights.layer(&net, at)) {
            let mut numbers = vec![0.0; tensors.len(role) as usize];
            if numbers.is_empty() {
                continue;
            }
            if !stored.widen(&mut numbers) {
                return Err(SafetensorsError::Weights { layer: at });
            }
            let suffix = modules::suffix(layer, role);
            let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            all.push((format!("{at}.{suffix}"), dims(layer, role, x, 4), bytes));
        }
    }
    let views: Result<Vec<_>, SafeTensorError> = all
        .iter()
        .map(|(name, dims, bytes)| Ok((name, TensorView::new(Dtype::F32, dims.clone(), bytes)?)))
        .collect();
    let about = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    Ok(::safetensors::serialize(views?, Some(about))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fit::Fit;
    use crate::lenet::{LENET, LENET5};
    use crate::resnet::RESNET8;
    use proptest::prelude::*;
    use sepal_core::layer::Dense;
    use sepal_core::net::Weights;

    const DENSE: Layer = Layer::Dense(Dense { units: 2, bias: true });
    const INPUT: Input =
        Input { shape: Shape::new(1, 3, 1, 1), normalisation: Normalisation::NONE };

    type Named<'a> = (&'a str, Dtype, &'a [usize], Vec<u8>);

    fn file(tensors: &[Named<'_>]) -> Vec<u8> {
        let views = tensors.iter().map(|(name, dtype, dims, bytes)| {
            (*name, TensorView::new(*dtype, dims.to_vec(), bytes).unwrap())
        });
        ::safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap()
    }

    fn f32s(numbers: &[f32]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    fn dense(bytes: &[u8]) -> Result<Imported, SafetensorsError> {
        read(bytes, Net { input: INPUT, layers: &[DENSE], blocks: &[1], features: 0 })
    }

    #[track_caller]
    fn refused(bytes: &[u8], parts: &[&str]) {
        let text = dense(bytes).unwrap_err().to_string();
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    }

    fn weight() -> Named<'static> {
        ("fc.weight", Dtype::F32, &[2, 3], f32s(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    }

    fn bias() -> Named<'static> {
        ("fc.bias", Dtype::F32, &[2], f32s(&[7.0, 8.0]))
    }

    #[test]
    fn nets_come_back() {
        for net in [LENET, LENET5, RESNET8] {
            let fit = Fit::new(net, 3).unwrap();
            let back = read(&write(&fit.model()).unwrap(), net).unwrap();
            assert_eq!(back.model().net, net);
            let (Weights::Flat(found), Weights::Flat(expected)) =
                (back.model().weights, fit.model().weights)
            else {
                panic!("weights are in memory")
            };
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn every_type_of_numbers_is_read() {
        let halves = |bits: u16| bits.to_le_bytes().repeat(6);
        for (dtype, bytes) in [
            (Dtype::F32, f32s(&[1.0; 6])),
            (Dtype::F64, 1f64.to_le_bytes().repeat(6)),
            (Dtype::F16, halves(0x3c00)),
            (Dtype::BF16, halves(0x3f80)),
        ] {
            let net = dense(&file(&[("fc.weight", dtype, &[2, 3], bytes), bias()])).unwrap();
            let Weights::Flat(found) = net.model().weights else { panic!("they are in memory") };
            assert_eq!(found, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 7.0, 8.0]);
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        assert!(dense(&file(&[weight(), bias()])).is_ok());
        let counter = ("fc.num_batches_tracked", Dtype::I64, &[][..], vec![0; 8]);
        assert!(dense(&file(&[weight(), bias(), counter])).is_ok());
        refused(&file(&[weight()]), &["fc (Bias)", "not there"]);
        let other = ("fc.weight", Dtype::F32, &[3, 2][..], f32s(&[1.0; 6]));
        refused(&file(&[other, bias()]), &["`fc.weight`", "[3, 2], expected [2, 3]"]);
        let wrong = ("fc.weight", Dtype::F32, &[2, 3][..], f32s(&[1.0, 2.0, f32::NAN, 1., 1., 1.]));
        refused(&file(&[wrong, bias()]), &["`fc.weight`", "element 2 is NaN"]);
        let ints = ("fc.weight", Dtype::I32, &[2, 3][..], vec![0; 24]);
        refused(&file(&[ints, bias()]), &["`fc.weight`", "I32"]);
        let more = ("head.weight", Dtype::F32, &[1, 2][..], f32s(&[1.0; 2]));
        refused(&file(&[weight(), bias(), more]), &["1 modules", "head"]);
        refused(&file(&[]), &["layer 0, dense", "the file has none"]);
        let odd = ("fc.gamma", Dtype::F32, &[2][..], f32s(&[1.0; 2]));
        refused(&file(&[weight(), bias(), odd]), &["`fc.gamma`"]);
        let layer_norm = ("ln.weight", Dtype::F32, &[2][..], f32s(&[1.0; 2]));
        refused(&file(&[weight(), bias(), layer_norm]), &["`ln.weight`", "[2]"]);
    }

    #[test]
    fn headers_are_not_trusted() {
        let bytes = file(&[weight(), bias()]);
        for end in 0..bytes.len() {
            refused(&bytes[..end], &["no safetensors"]);
        }
        for length in [0, 1, 1 << 20, 1 << 40, u64::MAX] {
            let mut absurd = bytes.clone();
            absurd[..8].copy_from_slice(&length.to_le_bytes());
            refused(&absurd, &["no safetensors"]);
        }
        for at in 0..bytes.len() {
            for change in [0x01, 0x02, 0x10, 0x80] {
                let mut changed = bytes.clone();
                changed[at] ^= change;
                if let Ok(net) = dense(&changed) {
                    assert!(net.model().net.check().is_ok());
                }
            }
        }
    }

    #[test]
    fn architectures_need_their_weights() {
        let bytes = write(&Fit::new(LENET5, 0).unwrap().model()).unwrap();
        let shape = LENET5.input.shape;
        for name in Architecture::NAMES {
            let read = read_as(&bytes, Architecture::named(name).unwrap(), shape);
            assert_eq!(read.is_ok(), name == "lenet", "{name}: {read:?}");
        }
        // A plane that is smaller than the kernels, and one that the dense layers do not fit.
        for side in [0, 3, 36] {
            let shape = Shape::new(1, 1, side, side);
            assert!(read_as(&bytes, Architecture::LeNet, shape).is_err(), "{side}");
        }
    }

    proptest! {
        #[test]
        fn bytes_are_weights_or_an_error(bytes: Vec<u8>) {
            prop_assert!(dense(&bytes).is_err());
        }
    }
}
