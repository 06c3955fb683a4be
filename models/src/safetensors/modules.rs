//! Tensors of a file, as the modules that they are of.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use ::safetensors::SafeTensors;
use ::safetensors::tensor::{Dtype, TensorView};
use sepal_core::layer::{Layer, Residual, Role};

use super::SafetensorsError;
use crate::imported::{Element, not_finite};

/// Layers that have parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Conv,
    Norm,
    /// A convolution beside the layers, with the name of torchvision's residual nets, and its norm.
    Shortcut,
    ShortcutNorm,
    Dense,
    Standardise,
}

impl Kind {
    pub(super) const fn of(layer: &Layer) -> Option<Self> {
        match layer {
            Layer::Conv2d(_) => Some(Self::Conv),
            Layer::BatchNorm(_) => Some(Self::Norm),
            // A table of vectors is a matrix too.
            Layer::Dense(_) | Layer::Embedding(_) => Some(Self::Dense),
            Layer::Standardise(_) => Some(Self::Standardise),
            Layer::Residual(Residual { project: Some(_), .. }) => Some(Self::Shortcut),
            _ => None,
        }
    }
}

/// What a layer's parameter is called behind its module's name.
pub(super) const fn suffix(layer: &Layer, role: Role) -> &'static str {
    match (layer, role) {
        (_, Role::Weight) => "weight",
        (_, Role::Bias) => "bias",
        (Layer::Standardise(_), Role::Mean) => "mean",
        (Layer::Standardise(_), Role::Variance) => "variance",
        (_, Role::Mean) => "running_mean",
        (_, Role::Variance) => "running_var",
    }
}

/// What a suffix is; `None` for counters that nothing here needs.
fn role(suffix: &str) -> Option<Option<Role>> {
    Some(match suffix {
        "weight" => Some(Role::Weight),
        "bias" => Some(Role::Bias),
        "running_mean" | "mean" => Some(Role::Mean),
        "running_var" | "variance" => Some(Role::Variance),
        "num_batches_tracked" => None,
        _ => return None,
    })
}

/// One tensor of a file.
pub(super) struct Tensor<'a> {
    pub(super) name: String,
    pub(super) view: TensorView<'a>,
}

impl Tensor<'_> {
    /// Its elements; all are finite.
    pub(super) fn numbers(&self) -> Result<Vec<f32>, SafetensorsError> {
        let wrong = |reason| SafetensorsError::Tensor { tensor: self.name.clone(), reason };
        let element = match self.view.dtype() {
            Dtype::F32 => Element::F32,
            Dtype::F64 => Element::F64,
            Dtype::F16 => Element::F16,
            Dtype::BF16 => Element::Bf16,
            found => return Err(wrong(format!("{found:?}, expected F32, F64, F16 or BF16"))),
        };
        let numbers = element.widen(self.view.data());
        match not_finite(&numbers) {
            Some(reason) => Err(wrong(reason)),
            None => Ok(numbers),
        }
    }
}

/// Tensors whose names differ in their last part.
pub(super) struct Module<'a> {
    pub(super) name: String,
    tensors: [Option<Tensor<'a>>; 4],
}

impl<'a> Module<'a> {
    pub(super) fn tensor(&self, role: Role) -> Option<&Tensor<'a>> {
        self.tensors.get(role as usize).and_then(Option::as_ref)
    }

    /// The shape of its weight.
    pub(super) fn shape(&self) -> &[usize] {
        self.tensor(Role::Weight).map_or(&[], |tensor| tensor.view.shape())
    }

    pub(super) fn has(&self, role: Role) -> bool {
        self.tensor(role).is_some()
    }

    fn kind(&self) -> Option<Kind> {
        let beside = self.name.rsplit_once('.').is_some_and(|(of, _)| of.ends_with("downsample"));
        match self.own_kind()? {
            Kind::Conv if beside => Some(Kind::Shortcut),
            Kind::Norm if beside => Some(Kind::ShortcutNorm),
            kind => Some(kind),
        }
    }

    fn own_kind(&self) -> Option<Kind> {
        let mean = self.tensor(Role::Mean).map(|tensor| tensor.name.ends_with("running_mean"));
        match (mean, self.shape().len()) {
            (Some(true), _) => Some(Kind::Norm),
            (Some(false), _) => Some(Kind::Standardise),
            (None, 2) => Some(Kind::Dense),
            (None, 3 | 4) => Some(Kind::Conv),
            _ => None,
        }
    }
}

/// All modules of a file, in the order of their names.
pub(super) struct Modules<'a> {
    all: Vec<(Kind, Option<Module<'a>>, String)>,
}

impl<'a> Modules<'a> {
    /// Sorts the tensors of a file.
    pub(super) fn new(file: &SafeTensors<'a>) -> Result<Self, SafetensorsError> {
        let mut found: BTreeMap<String, Module<'a>> = BTreeMap::new();
        for (name, view) in file.tensors() {
            let (module, suffix) = name.rsplit_once('.').unwrap_or(("", &name));
            let known = role(suffix).ok_or_else(|| SafetensorsError::Tensor {
                tensor: name.clone(),
                reason: "expected a weight, bias, running_mean or running_var".to_owned(),
            })?;
            let Some(role) = known else { continue };
            let tensors = [const { None }; 4];
            let module = found
                .entry(module.to_owned())
                .or_insert_with(|| Module { name: module.to_owned(), tensors });
            if let Some(place) = module.tensors.get_mut(role as usize) {
                *place = Some(Tensor { name, view });
            }
        }
        let mut all = Vec::new();
        for (name, module) in found {
            let kind = module.kind().ok_or_else(|| SafetensorsError::Tensor {
                tensor: format!("{name}.weight"),
                reason: format!(
                    "shape {:?}, expected that of a convolution, a norm or a dense layer",
                    module.shape()
                ),
            })?;
            all.push((kind, Some(module), name));
        }
        all.sort_by(|(_, _, a), (_, _, b)| order(a, b));
        Ok(Self { all })
    }

    /// The next module of a kind.
    pub(super) fn take(&mut self, kind: Kind) -> Option<Module<'a>> {
        let mut of = self.all.iter_mut().filter(|(own, ..)| *own == kind);
        of.find_map(|(_, module, _)| module.take())
    }

    /// The module of a name that is left, without taking it.
    pub(super) fn named(&self, name: &str) -> Option<&Module<'a>> {
        self.all.iter().find(|(_, _, own)| own == name).and_then(|(_, module, _)| module.as_ref())
    }

    /// Takes the norm of a shortcut: `downsample.1` behind `downsample.0`.
    pub(super) fn norm_of(&mut self, shortcut: &str) -> Option<Module<'a>> {
        let name = format!("{}1", shortcut.strip_suffix('0')?);
        let mut of = self.all.iter_mut().filter(|(kind, ..)| *kind == Kind::ShortcutNorm);
        of.find(|(_, _, own)| *own == name).and_then(|(_, module, _)| module.take())
    }

    /// Those of a kind that are left, without taking them.
    pub(super) fn of(&self, kind: Kind) -> impl Iterator<Item = &Module<'a>> {
        self.all.iter().filter(move |(own, ..)| *own == kind).filter_map(|(_, m, _)| m.as_ref())
    }

    /// The names of those of a kind that are taken.
    pub(super) fn taken(&self, kind: Kind) -> Vec<String> {
        let taken = self.all.iter().filter(|(own, module, _)| *own == kind && module.is_none());
        taken.map(|(_, _, name)| name.clone()).collect()
    }

    /// The names of those that are left.
    pub(super) fn left(&self) -> Vec<String> {
        let left = self.all.iter().filter(|(_, module, _)| module.is_some());
        left.map(|(_, _, name)| name.clone()).collect()
    }
}

/// Names as people order them: `conv2` before `conv10`.
fn order(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (parts(a), parts(b));
    loop {
        match (a.next(), b.next()) {
            (None, None) => return Ordering::Equal,
            (a, b) if a != b => return a.cmp(&b),
            _ => {}
        }
    }
}

/// Runs of digits, as numbers, and the text between them.
fn parts(name: &str) -> impl Iterator<Item = (bool, usize, &str)> {
    let mut rest = name;
    std::iter::from_fn(move || {
        let digits = rest.starts_with(|c: char| c.is_ascii_digit());
        let end = rest.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(rest.len());
        let (part, after) = rest.split_at_checked(end).filter(|(part, _)| !part.is_empty())?;
        rest = after;
        // Without zeros in front a longer number is a larger one.
        let number = part.trim_start_matches('0');
        Some(if digits { (false, number.len(), number) } else { (true, 0, part) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_the_order_of_their_numbers() {
        let names = [
            "bn1",
            "conv1",
            "conv2",
            "conv10",
            "features.0",
            "features.3",
            "features.10",
            "features.10.1",
            "layer1.0.conv1",
            "layer1.0.conv2",
            "layer2.0.conv1",
        ];
        let mut sorted = names;
        sorted.reverse();
        sorted.sort_by(|a, b| order(a, b));
        assert_eq!(sorted, names);
    }
}
