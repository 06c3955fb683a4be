//! Objectives: neighbours, value, count and gradient, of which only scalars come back.

use std::sync::Arc;

use sepal_core::arena::{Dtype, Word};
use sepal_core::backend::ObjectivePlace;
use sepal_core::error::Error;
use sepal_core::loss::{self, Score};
use sepal_core::shape::Shape;
use sepal_core::stage::{Loss, Objective};

use crate::gpu::{Address, Gpu, Launch, Source, args};
use crate::layers::elements;
use crate::memory::Memory;
use crate::search;

/// Bytes of a term: its value, whether it is taken, whether its anchor is right.
const TERM: usize = 12;
/// Bytes of what an anchor's distances come to.
const NEAR: usize = 16;

/// Where the parts of the scratch lie: the score first, then the terms, then what the objective
/// needs.
struct Parts {
    terms: usize,
    rest: usize,
    end: usize,
}

fn parts(objective: &Objective, n: u32) -> Parts {
    let n = n as usize;
    let terms = Word::BYTES;
    let rest = terms + Word::round_up(n.saturating_mul(TERM));
    let own = match objective.loss() {
        // The distances of all rows to each other, then the anchors'.
        Some(Loss::SoftNearest { .. }) => {
            Word::round_up(n.saturating_mul(NEAR)) + n.saturating_mul(n).saturating_mul(4)
        }
        // Keys of both kinds, then which anchors move their neighbours.
        Some(_) => n.saturating_mul(16) + n.saturating_mul(4),
        None => 0,
    };
    Parts { terms, rest, end: rest.saturating_add(own) }
}

/// Scratch bytes of an objective over `features`: 12 a sample; for the hard losses 20 more, for the
/// soft one of neighbours 16 more and a matrix of 4 N^2; none for what runs on the host.
pub(crate) fn scratch(objective: &Objective, features: Shape) -> usize {
    match objective {
        Objective::Statistics | Objective::PredSim { .. } | Objective::Goodness { .. } => 0,
        _ if matches!(objective.loss(), Some(Loss::SoftCentre { .. })) => 0,
        _ => parts(objective, features.n).end,
    }
}

pub(crate) fn run(
    gpu: &Arc<Gpu>,
    memory: &Memory,
    objective: &Objective,
    at: &ObjectivePlace,
) -> Result<Score, Error> {
    if *objective == Objective::Statistics {
        return Ok(Score::default());
    }
    let shape = at.features.shape;
    let (n, dim, len) = (shape.n, shape.sample().unwrap_or(0), elements(shape));
    let x = memory.of(at.features, Dtype::F32, len as usize)?;
    let labels = memory.of(at.labels, Dtype::U16, n as usize)?;
    let gradient = memory.of(at.gradient, Dtype::F32, len as usize)?;
    if let Objective::PredSim { beta, similar } = *objective {
        return on_host(gpu, (x, len), (labels, n), gradient, |x, labels, scratch, gradient| {
            let (dim, similar) = (dim as usize, similar as usize);
            loss::pred_sim(x, dim, labels, beta, similar, scratch, Some(gradient))
        });
    }
    if let Objective::Goodness { threshold, classes } = *objective {
        return on_host(gpu, (x, len), (labels, n), gradient, |x, labels, _, gradient| {
            loss::goodness(x, dim as usize, labels, classes, threshold, Some(gradient))
        });
    }
    if let Some(Loss::SoftCentre { temperature }) = objective.loss() {
        return on_host(gpu, (x, len), (labels, n), gradient, |x, labels, scratch, gradient| {
            loss::soft_centre(x, dim as usize, labels, temperature, scratch, Some(gradient))
        });
    }
    let scratch = memory.address(at.scratch)?;
    let Parts { terms, rest, .. } = parts(objective, n);
    let (score, terms, rest) = (scratch, scratch.past(terms), scratch.past(rest));
    let launch = |name, launch, args: &[_]| gpu.launch(Source::Objective, name, launch, args);
    let tally = |mean: bool| {
        let args = args![terms, score, n, u32::from(mean)];
        launch("tally", Launch::blocks(1, 256), args)
    };
    let rows = Launch { grid: [n, dim.div_ceil(256), 1], block: 256, shared: 0 };
    match *objective {
        Objective::CrossEntropy { smoothing } => {
            let args = args![x, labels, terms, gradient, n, dim, smoothing];
            launch("cross_entropy", Launch::warps(n), args)?;
            tally(true)?;
            let args = args![terms, score, gradient, len, dim];
            launch("cross_entropy_mean", Launch::over(len), args)?;
        }
        Objective::Separation(loss) | Objective::Views(loss) => match loss {
            Loss::SoftNearest { temperature } => {
                if !(temperature.is_finite() && temperature > 0.0) {
                    gpu.set(gradient, 0, len as usize * size_of::<f32>())?;
                    return Ok(Score { skipped: n, ..Score::default() });
                }
                let matrix = rest.past(Word::round_up(n as usize * NEAR));
                search::matrix(gpu, (x, n, dim), matrix)?;
                let args = args![matrix, labels, rest, terms, n, temperature];
                launch("soft_terms", Launch::warps(n), args)?;
                tally(true)?;
                let args =
                    args![x, matrix, labels, rest, terms, score, gradient, n, dim, temperature];
                launch("soft_gradient", rows, args)?;
            }
            Loss::Margin { .. } | Loss::Triplet => {
                let (has_margin, margin) = match loss {
                    Loss::Margin { margin } => (1u32, margin),
                    _ => (0, 0.0),
                };
                let pairs = memory.of(at.pairs, Dtype::Pair, n as usize)?;
                let moves = rest.past(n as usize * 16);
                search::within(gpu, (x, labels, n, dim), rest, pairs)?;
                let args = args![pairs, terms, moves, n, has_margin, margin];
                launch("graph_terms", Launch::over(n), args)?;
                tally(has_margin == 1)?;
                let args = args![x, pairs, terms, moves, score, gradient, n, dim, has_margin];
                launch("graph_gradient", rows, args)?;
            }
            _ => return Err(Error::Unsupported("this loss")),
        },
        Objective::Statistics => {}
        _ => return Err(Error::Unsupported("this objective")),
    }
    read(gpu, score)
}

/// The reference's loss over copies, for one that has no kernel.
fn on_host(
    gpu: &Gpu,
    (x, len): (Address, u32),
    (labels, n): (Address, u32),
    gradient: Address,
    of: impl FnOnce(&[f32], &[u16], &mut [f32], &mut [f32]) -> Score,
) -> Result<Score, Error> {
    let (mut features, mut own) = (vec![0.0f32; len as usize], vec![0u16; n as usize]);
    gpu.read(x, bytemuck::cast_slice_mut(&mut features))?;
    gpu.read(labels, bytemuck::cast_slice_mut(&mut own))?;
    let (mut scratch, mut found) =
        (vec![0.0; loss::CENTRE_SCRATCH * own.len()], vec![0.0; features.len()]);
    let score = of(&features, &own, &mut scratch, &mut found);
    gpu.write(gradient, bytemuck::cast_slice(&found))?;
    Ok(score)
}

fn read(gpu: &Gpu, at: Address) -> Result<Score, Error> {
    let mut words = [0u32; 4];
    gpu.read(at, bytemuck::cast_slice_mut(&mut words))?;
    let [value, anchors, skipped, correct] = words;
    Ok(Score { value: f32::from_bits(value), anchors, skipped, correct })
}
