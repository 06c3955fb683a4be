//! `ndarray` views in, `ndarray` arrays out.
//!
//! Rows in standard layout are read in place, others are copied first. The functions without a
//! backend run on rayon's shared threads.

pub use half::f16;
use ndarray::{Array1, Array2, ArrayView, ArrayView2, Axis, RemoveAxis};
use sepal_core::arena::ArenaError;
use sepal_core::backend::{Backend, HostMut};
use sepal_core::error::Error;
use sepal_core::infer::{Inference, RawSample};
use sepal_core::neighbour::{Nearest, Pair, Rows};
use sepal_core::net::Model;
use sepal_core::plan::PlanError;
use sepal_core::si;

use crate::arch::Instructions;
use crate::arch::distance::Element;
use crate::search;

/// A number that features are stored as: `f32`, or half precision, which is widened where it is
/// read. Neighbours and distances are those of the widened features, to the bit.
pub trait Feature: Element {}

impl Feature for f32 {}
impl Feature for f16 {}

/// Calls `with` with the rows of a matrix and their labels.
fn with_rows<T: Feature, R>(
    features: ArrayView2<'_, T>,
    labels: &[u16],
    with: impl FnOnce(Rows<'_, T>) -> R,
) -> Result<R, Error> {
    let (count, dim) = features.dim();
    if count != labels.len() {
        return Err(ArenaError::Length { slot: count, host: labels.len() }.into());
    }
    let standard = features.as_standard_layout();
    let data = standard.as_slice().unwrap_or_default();
    Ok(with(Rows { data, dim, labels }))
}

/// For each row of `features`, (M, D), the nearest other row with its label and the nearest with
/// another; see [`nearest_pair`](sepal_core::neighbour::nearest_pair).
///
/// # Errors
/// Another number of labels than of rows.
///
/// ```
/// use ndarray::array;
/// use sepal_cpu::views;
/// let features = array![[0.0f32, 0.0], [0.0, 1.0], [3.0, 0.0]];
/// let pairs = views::nearest(features.view(), &[0, 1, 0])?;
/// assert_eq!((pairs[0].same.index, pairs[0].other.index), (2, 1));
/// // In half precision these numbers are the same.
/// let half = features.mapv(views::f16::from_f32);
/// assert_eq!(views::nearest(half.view(), &[0, 1, 0])?, pairs);
/// assert!(!pairs[1].same.exists()); // alone in its class
/// # Ok::<(), sepal_core::error::Error>(())
/// ```
pub fn nearest<T: Feature>(
    features: ArrayView2<'_, T>,
    labels: &[u16],
) -> Result<Array1<Pair>, Error> {
    with_rows(features, labels, |rows| {
        let mut pairs = vec![Pair::NONE; rows.len()];
        search::nearest(Instructions::best(), rows, rows, 0, Some(0), &mut pairs);
        Array1::from_vec(pairs)
    })
}

/// For each row of `queries`, (M, D), its `k` nearest among the rows of `bank`, (B, D): (M, k),
/// nearest first; see [`top_k`](sepal_core::neighbour::top_k).
///
/// # Errors
/// Rows of different lengths, more places than memory has.
///
/// ```
/// use ndarray::array;
/// let bank = array![[0.0f32], [1.0], [3.0]];
/// let near = sepal_cpu::views::top_k(array![[0.9]].view(), bank.view(), 2)?;
/// assert_eq!((near[[0, 0]].index, near[[0, 1]].index), (1, 0));
/// # Ok::<(), sepal_core::error::Error>(())
/// ```
pub fn top_k<T: Feature>(
    queries: ArrayView2<'_, T>,
    bank: ArrayView2<'_, T>,
    k: usize,
) -> Result<Array2<Nearest>, Error> {
    if queries.ncols() != bank.ncols() {
        return Err(ArenaError::Length { slot: bank.ncols(), host: queries.ncols() }.into());
    }
    let count = queries.nrows();
    let (mut out, places) = (Vec::new(), count.saturating_mul(k));
    let needed = places.saturating_mul(size_of::<Nearest>());
    let missing = ArenaError::OutOfMemory { needed, given: 0 };
    out.try_reserve_exact(places).map_err(|_| missing)?;
    out.resize(places, Nearest::NONE);
    // The order of all neighbours does not look at labels.
    with_rows(queries, &vec![0; count], |queries| {
        with_rows(bank, &vec![0; bank.nrows()], |bank| {
            search::top_k(Instructions::best(), queries, bank, 0, None, k, &mut out);
        })
    })??;
    let shaped = Array2::from_shape_vec((count, k), out);
    shaped.map_err(|_| ArenaError::Length { slot: count, host: k }.into())
}

/// The Separation Index of labelled rows (Eq. 1 of the paper): the share whose nearest other row
/// has their label. `None` where no row has a neighbour.
///
/// # Errors
/// Another number of labels than of rows.
///
/// ```
/// use ndarray::array;
/// let features = array![[0.0f32], [0.1], [1.0], [1.1], [1.2]];
/// let si = sepal_cpu::views::separation_index(features.view(), &[0, 0, 1, 1, 0])?;
/// assert_eq!(si, Some(0.8)); // only the last is on the wrong side
/// # Ok::<(), sepal_core::error::Error>(())
/// ```
pub fn separation_index<T: Feature>(
    features: ArrayView2<'_, T>,
    labels: &[u16],
) -> Result<Option<f64>, Error> {
    let pairs = nearest(features, labels)?;
    Ok(si::si(pairs.as_slice().unwrap_or_default()).value())
}

/// A type of samples that a net takes: bytes or numbers.
pub trait Sample: RawSample + Copy {
    /// Whether samples are bytes.
    const BYTES: bool;
}

impl Sample for u8 {
    const BYTES: bool = true;
}

impl Sample for f32 {
    const BYTES: bool = false;
}

/// The outputs of layers `first..last` of a model for each of `samples`, whose first axis counts
/// them: (M, D). They run `batch` at a time, in the backend's memory; [`embed_bytes`] says how
/// much that must be.
///
/// # Errors
/// An arena that is too small, samples of another size than the net's, layers that do not fit.
///
/// ```
/// use ndarray::array;
/// use sepal_core::layer::{Dense, Layer};
/// use sepal_core::net::{Input, Model, Net, Normalisation, Weights};
/// use sepal_core::shape::Shape;
/// use sepal_cpu::{Cpu, views};
///
/// const NET: Net<'static> = Net {
///     input: Input { shape: Shape::rows(1, 2), normalisation: Normalisation::NONE },
///     layers: &[Layer::Dense(Dense { units: 1, bias: false })],
///     blocks: &[1],
///     features: 0,
/// };
/// let model = Model { net: NET, weights: Weights::Flat(&[2.0, -1.0]) };
/// let samples = array![[3.0f32, 4.0], [1.0, 0.0], [0.0, 1.0]];
/// let bytes = views::embed_bytes::<f32>(&Cpu::new(&mut []), &model, (0, 1), 2)?;
/// let mut memory = sepal_cpu::words(bytes);
/// let out = views::embed(&mut Cpu::new(&mut memory), &model, (0, 1), 2, samples.view())?;
/// assert_eq!(out, array![[2.0], [2.0], [-1.0]]);
/// # Ok::<(), sepal_core::error::Error>(())
/// ```
pub fn embed<B: Backend, T: Sample, D: RemoveAxis>(
    backend: &mut B,
    model: &Model<'_>,
    layers: (usize, usize),
    batch: u32,
    samples: ArrayView<'_, T, D>,
) -> Result<Array2<f32>, Error> {
    let plan = Inference::new(backend, model, layers, batch, T::BYTES)?;
    let shape = model.net.shape(layers.0)?;
    let (count, dim) = (samples.len_of(Axis(0)), plan.output());
    let sample = shape.sample().unwrap_or(0) as usize;
    if samples.len() != count * sample {
        let got = samples.len().checked_div(count).unwrap_or(0);
        return Err(Error::Sample { expected: shape, got: rows_of(got) });
    }
    let mut out = vec![0.0; count * dim];
    if count == 0 || batch == 0 || sample == 0 || dim == 0 {
        return shaped(count, dim, out);
    }
    let pieces = samples.axis_chunks_iter(Axis(0), batch as usize);
    for (piece, out) in pieces.zip(out.chunks_mut(batch as usize * dim)) {
        let n = (piece.len() / sample) as u32;
        let slot = plan.run_slot(backend, model, n, |host| {
            let host = T::samples(host)?.iter_mut();
            host.zip(&piece).for_each(|(host, &value)| *host = value);
            Ok(())
        })?;
        backend.read(slot, HostMut::F32(out))?;
    }
    shaped(count, dim, out)
}

/// The memory in bytes that [`embed`] needs.
///
/// # Errors
/// Layers that do not fit each other, a range outside the net.
pub fn embed_bytes<T: Sample>(
    backend: &impl Backend,
    model: &Model<'_>,
    layers: (usize, usize),
    batch: u32,
) -> Result<usize, PlanError> {
    Ok(Inference::new(backend, model, layers, batch, T::BYTES)?.bytes())
}

fn rows_of(sample: usize) -> sepal_core::shape::Shape {
    sepal_core::shape::Shape::rows(1, u32::try_from(sample).unwrap_or(u32::MAX))
}

fn shaped(count: usize, dim: usize, out: Vec<f32>) -> Result<Array2<f32>, Error> {
    let wrong = ArenaError::Length { slot: count * dim, host: out.len() };
    Array2::from_shape_vec((count, dim), out).map_err(|_| wrong.into())
}
