//! Constants of a graph, read where they lie.

use std::rc::Rc;

use super::OnnxError;
use super::proto::{EXTERNAL, Tensor, element};
use crate::imported::{Element, not_finite};

/// The most dimensions of a constant.
const RANK: usize = 8;

/// A constant: a tensor of the file under a shape, or whole numbers that the graph computes.
#[derive(Clone, Debug)]
pub(super) struct Constant<'a> {
    /// What errors call it.
    pub(super) name: &'a str,
    pub(super) dims: Vec<usize>,
    /// A matrix of which rows are columns in the file.
    transposed: bool,
    data: Data<'a>,
}

#[derive(Clone, Debug)]
enum Data<'a> {
    Tensor(&'a Tensor),
    Ints(Rc<[i64]>),
    Float(f32),
}

pub(super) fn fault(tensor: &str, reason: impl Into<String>) -> OnnxError {
    OnnxError::Tensor { tensor: tensor.to_owned(), reason: reason.into() }
}

impl<'a> Constant<'a> {
    /// The most whole numbers that a constant of shapes or axes has.
    pub(super) const SHORT: usize = 64;

    /// A tensor of the file, its shape checked.
    pub(super) fn stored(name: &'a str, tensor: &'a Tensor) -> Result<Self, OnnxError> {
        if tensor.data_location == EXTERNAL {
            return Err(fault(name, "its data lie in another file, expected them in this one"));
        }
        let rank = tensor.dims.len();
        if rank > RANK {
            return Err(fault(name, format!("{rank} dimensions, expected at most {RANK}")));
        }
        let dims: Option<Vec<usize>> =
            tensor.dims.iter().map(|&d| usize::try_from(d).ok()).collect();
        let product =
            |dims: &Vec<usize>| dims.iter().try_fold(1usize, |all, &d| all.checked_mul(d));
        match dims.filter(|dims| product(dims).is_some()) {
            Some(dims) => Ok(Self { name, dims, transposed: false, data: Data::Tensor(tensor) }),
            None => Err(fault(name, format!("its shape {:?} is no shape", tensor.dims))),
        }
    }

    /// Whole numbers; one without a dimension.
    pub(super) fn ints(name: &'a str, ints: Vec<i64>, scalar: bool) -> Self {
        let dims = if scalar { Vec::new() } else { vec![ints.len()] };
        Self { name, dims, transposed: false, data: Data::Ints(ints.into()) }
    }

    /// One number.
    pub(super) fn float(name: &'a str, number: f32) -> Self {
        Self { name, dims: Vec::new(), transposed: false, data: Data::Float(number) }
    }

    /// The same numbers under another shape; `None` where it has another number of elements.
    pub(super) fn reshaped(&self, dims: Vec<usize>) -> Option<Self> {
        let len = dims.iter().try_fold(1usize, |all, &d| all.checked_mul(d))?;
        (len == self.len() && !self.transposed).then(|| Self { dims, ..self.clone() })
    }

    /// A matrix whose rows are columns.
    pub(super) fn transposed(self) -> Result<Self, String> {
        match self.dims.as_slice() {
            &[rows, columns] => {
                let transposed = !self.transposed;
                Ok(Self { dims: vec![columns, rows], transposed, ..self })
            }
            found => Err(format!("`{}` has shape {found:?}, expected a matrix", self.name)),
        }
    }

    /// How many elements its shape has.
    pub(super) fn len(&self) -> usize {
        self.dims.iter().product()
    }

    fn check(&self, expected: usize, found: usize, unit: &str) -> Result<(), OnnxError> {
        if expected == found {
            return Ok(());
        }
        let of = format!("as its shape {:?} says", self.dims);
        Err(fault(self.name, format!("{found} {unit}, expected {expected} {of}")))
    }

    /// Its elements, row by row. All are finite.
    pub(super) fn numbers(&self) -> Result<Vec<f32>, OnnxError> {
        let numbers = self.stored_numbers()?;
        if let Some(reason) = not_finite(&numbers) {
            return Err(fault(self.name, reason));
        }
        match self.dims.as_slice() {
            // Columns lie one after the other.
            &[rows, columns] if self.transposed => Ok((0..rows)
                .flat_map(|row| numbers.iter().skip(row).step_by(rows).take(columns).copied())
                .collect()),
            _ => Ok(numbers),
        }
    }

    fn stored_numbers(&self) -> Result<Vec<f32>, OnnxError> {
        let tensor = match self.data {
            Data::Tensor(tensor) => tensor,
            Data::Float(number) => return Ok(vec![number]),
            Data::Ints(_) => return Err(fault(self.name, "whole numbers, expected weights")),
        };
        let (element, typed) = match tensor.data_type {
            element::FLOAT => (Element::F32, tensor.float_data.len()),
            element::DOUBLE => (Element::F64, tensor.double_data.len()),
            element::FLOAT16 => (Element::F16, tensor.int32_data.len()),
            element::BFLOAT16 => (Element::Bf16, tensor.int32_data.len()),
            found => {
                let expected = "float, double, float16 or bfloat16 (1, 11, 10, 16)";
                let reason = format!("elements of type {found}, expected {expected}");
                return Err(fault(self.name, reason));
            }
        };
        if !tensor.raw_data.is_empty() {
            self.check_raw(tensor, element.size())?;
            return Ok(element.widen(&tensor.raw_data));
        }
        self.check(self.len(), typed, "elements")?;
        let bits = tensor.int32_data.iter().map(|&bits| bits as u16);
        Ok(match element {
            Element::F32 => tensor.float_data.clone(),
            Element::F64 => tensor.double_data.iter().map(|&number| number as f32).collect(),
            Element::F16 => bits.map(|bits| half::f16::from_bits(bits).to_f32()).collect(),
            Element::Bf16 => bits.map(|bits| half::bf16::from_bits(bits).to_f32()).collect(),
        })
    }

    fn check_raw(&self, tensor: &Tensor, size: usize) -> Result<(), OnnxError> {
        self.check(self.len().saturating_mul(size), tensor.raw_data.len(), "bytes")
    }

    /// Its elements as whole numbers, such as those of a shape: a few.
    pub(super) fn integers(&self) -> Result<Vec<i64>, OnnxError> {
        let len = self.len();
        if len > Self::SHORT {
            let reason = format!("{len} whole numbers, expected at most {}", Self::SHORT);
            return Err(fault(self.name, reason));
        }
        let tensor = match &self.data {
            Data::Tensor(tensor) => *tensor,
            Data::Ints(ints) => return Ok(ints.to_vec()),
            Data::Float(number) => {
                return Err(fault(self.name, format!("{number}, expected a whole number")));
            }
        };
        let typed = match tensor.data_type {
            element::INT64 => tensor.int64_data.len(),
            element::INT32 => tensor.int32_data.len(),
            found => {
                let reason = format!("elements of type {found}, expected int64 or int32 (7, 6)");
                return Err(fault(self.name, reason));
            }
        };
        let wide = tensor.data_type == element::INT64;
        if !tensor.raw_data.is_empty() {
            self.check_raw(tensor, if wide { 8 } else { 4 })?;
            let raw = &tensor.raw_data;
            return Ok(match wide {
                true => raw.as_chunks().0.iter().map(|n| i64::from_le_bytes(*n)).collect(),
                false => raw.as_chunks().0.iter().map(|n| i32::from_le_bytes(*n).into()).collect(),
            });
        }
        self.check(len, typed, "elements")?;
        Ok(match wide {
            true => tensor.int64_data.clone(),
            false => tensor.int32_data.iter().map(|&n| n.into()).collect(),
        })
    }

    /// Its elements as whole numbers, whatever integers they were.
    pub(super) fn as_integers(&self) -> Result<Self, OnnxError> {
        Ok(Self { data: Data::Ints(self.integers()?.into()), ..self.clone() })
    }

    /// One truth value.
    pub(super) fn flag(&self) -> Result<bool, OnnxError> {
        match &self.data {
            Data::Tensor(tensor) if tensor.data_type == element::BOOL => {
                let raw = tensor.raw_data.iter().any(|&byte| byte != 0);
                Ok(raw || tensor.int32_data.iter().any(|&one| one != 0))
            }
            _ => Err(fault(self.name, "no truth value")),
        }
    }
}
