//! Reading a net's classes off its goodness, without a classifier.

use sepal_core::arena::ArenaError;
use sepal_core::backend::Device;
use sepal_core::error::Error;
use sepal_core::label;
use sepal_core::net::{Input, Model};
use sepal_core::plan::PlanError;
use sepal_core::shape::Shape;
use sepal_core::source::{Batch, Draw, Source, SourceError};

use crate::features::Features;

/// Samples that are looked at together: what the blocks make of them is in memory at once.
const CHUNK: u32 = 256;

/// How much each label, written into each sample, excites the blocks of features: the sum of the means of
/// squares of what they give. Hinton (arXiv 2212.13345) leaves the first block out, which serves best
/// there; so does this, where there is another. Blocks that learnt within a window count as all others
/// do, though goodness was asked of its last alone.
///
/// The classifier behind the features takes no part, and nothing is learnt: it takes as many passes as
/// there are classes.
///
/// ```
/// # #[cfg(feature = "bundled")] {
/// use sepal_core::reference::OnReference;
/// use sepal_models::{data, fit::Fit, goodness::Goodness, lenet::LENET};
/// // Drawn blocks: no label is more to them than another.
/// let (images, fit) = (data::bundled().test.head(20)?, Fit::new(LENET, 0)?);
/// let goodness = Goodness::new(&OnReference, &fit.model(), &mut &images, 10)?;
/// assert_eq!(goodness.data().len(), 20 * 10);
/// assert!(goodness.accuracy() < 0.5);
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Goodness {
    classes: usize,
    data: Vec<f32>,
    labels: Vec<u16>,
}

impl Goodness {
    /// Runs all raw samples of `source` through the blocks, once with each label.
    ///
    /// # Errors
    /// A net without blocks of features, labels that cannot be written into its samples
    /// ([`PlanError::Label`]), samples to which layers were applied already ([`PlanError::Raw`]) or of
    /// another shape than the net takes, memory that the system has not.
    pub fn new<D: Device, S: Source>(
        device: &D,
        model: &Model<'_>,
        source: &mut S,
        classes: u32,
    ) -> Result<Self, Error> {
        let net = model.net;
        let count = usize::from(net.features);
        if source.depth() > 0 {
            return Err(PlanError::Raw { depth: source.depth() }.into());
        }
        if !label::fits(&net.input, classes) {
            return Err(PlanError::Label { classes, sample: net.input.shape }.into());
        }
        if count == 0 {
            return Err(PlanError::Range { first: 0, last: 0, layers: net.layers.len() }.into());
        }
        let (mut data, mut labels) = (Vec::new(), Vec::new());
        let numbers = (source.len() as usize).saturating_mul(classes as usize);
        if data.try_reserve_exact(numbers).is_err() {
            let needed = numbers.saturating_mul(size_of::<f32>());
            return Err(ArenaError::OutOfMemory { needed, given: 0 }.into());
        }
        for first in (0..source.len()).step_by(CHUNK as usize) {
            let n = CHUNK.min(source.len() - first);
            let at = data.len();
            data.resize(at + n as usize * classes as usize, 0.0);
            let chunk = data.get_mut(at..).unwrap_or_default();
            for label in 0..classes {
                let (input, label) = (net.input, label as u16);
                let written = &mut Written { source, input, classes, label, first, n };
                let (_, end) = net.block(0).unwrap_or_default();
                let mut features = Features::new(device, model, written, end)?;
                for block in 0..count {
                    if block > 0 {
                        let (_, end) = net.block(block).unwrap_or_default();
                        features = Features::new(device, model, &mut features, end)?;
                    }
                    if block > 0 || count == 1 {
                        let rows = chunk.chunks_exact_mut(classes as usize);
                        for (row, goodness) in rows.zip(features.goodness()) {
                            row.iter_mut().skip(label.into()).take(1).for_each(|g| *g += goodness);
                        }
                    }
                }
                if label == 0 {
                    labels.extend_from_slice(features.labels());
                }
            }
        }
        Ok(Self { classes: classes as usize, data, labels })
    }

    /// One row for each sample, one number for each label, (M, classes).
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// The label of most goodness for each sample, the first of equal ones; NaN is never most.
    pub fn predicted(&self) -> impl Iterator<Item = u16> {
        self.data.chunks_exact(self.classes).map(|row| {
            let most = (0..).zip(row).fold((0, f32::NEG_INFINITY), |most, (label, &goodness)| {
                if goodness > most.1 { (label, goodness) } else { most }
            });
            most.0
        })
    }

    /// The share of samples whose label is the one of most goodness; 0 where there are none.
    pub fn accuracy(&self) -> f64 {
        let right = self.predicted().zip(&self.labels).filter(|(found, own)| found == *own);
        right.count() as f64 / self.labels.len().max(1) as f64
    }
}

/// Samples `first..first + n` of a source with one label written into all of them.
struct Written<'a, S> {
    source: &'a mut S,
    input: Input,
    classes: u32,
    label: u16,
    first: u32,
    n: u32,
}

impl<S: Source> Source for Written<'_, S> {
    fn len(&self) -> u32 {
        self.n
    }

    fn shape(&self) -> Shape {
        self.source.shape()
    }

    fn is_u8(&self) -> bool {
        self.source.is_u8()
    }

    fn read(
        &mut self,
        indices: &[u32],
        draw: Option<Draw>,
        mut batch: Batch<'_>,
        labels: &mut [u16],
    ) -> Result<(), SourceError> {
        let indices: Vec<u32> = indices.iter().map(|index| self.first + index).collect();
        self.source.read(&indices, draw, batch.again(), labels)?;
        label::write(&self.input, self.classes, &vec![self.label; indices.len()], batch);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Budget;
    use crate::fit::Fit;
    use crate::learning::{Learning, Way};
    use sepal_core::layer::{Dense, Flatten, Layer, RELU};
    use sepal_core::net::{Net, Normalisation, Weights};
    use sepal_core::reference::OnReference;

    /// Rows of three numbers, of which the last says the label.
    struct Rows(u32);

    impl Source for Rows {
        fn len(&self) -> u32 {
            self.0
        }

        fn shape(&self) -> Shape {
            Shape::rows(1, 3)
        }

        fn is_u8(&self) -> bool {
            false
        }

        fn read(
            &mut self,
            indices: &[u32],
            _: Option<Draw>,
            batch: Batch<'_>,
            labels: &mut [u16],
        ) -> Result<(), SourceError> {
            let Batch::F32(x) = batch else {
                return Err(SourceError::Batch { expected: 0, got: 0 });
            };
            for ((x, label), &index) in x.chunks_exact_mut(3).zip(labels).zip(indices) {
                *label = u16::from(index % 3 == 0);
                x.copy_from_slice(&[8.0, 9.0, f32::from(*label)]);
            }
            Ok(())
        }
    }

    const UNITS: Layer = Layer::Dense(Dense { units: 2, bias: false });
    const INPUT: Input = Input { shape: Shape::rows(1, 3), normalisation: Normalisation::NONE };

    /// x = (a, b, c) becomes (c - a, c - b): (c - 1, c) where label 0 is written, (c, c - 1) for 1.
    const FIRST: [f32; 6] = [-1.0, 0.0, 1.0, 0.0, -1.0, 1.0];

    /// More samples than are looked at together. One block counts; of two the second alone, which turns
    /// the first's (p, q) into (3p, 0).
    #[test]
    fn goodness_is_that_of_all_blocks_but_the_first() {
        let samples = CHUNK + 44;
        let read = |layers: &[Layer], weights: &[f32]| {
            let blocks = [1, 2];
            let blocks = &blocks[..layers.len()];
            let net = Net { input: INPUT, layers, blocks, features: layers.len() as u16 };
            let model = Model { net, weights: Weights::Flat(weights) };
            Goodness::new(&OnReference, &model, &mut Rows(samples), 2).unwrap()
        };
        let one = read(&[UNITS], &FIRST);
        let two = read(&[UNITS; 2], &[&FIRST[..], &[3.0, 0.0, 0.0, 0.0]].concat());
        assert_eq!([one.data().len(), two.data().len()], [2 * samples as usize; 2]);
        for sample in 0..samples {
            let c = f32::from(u8::from(sample % 3 == 0));
            let at = sample as usize * 2;
            let first = ((c - 1.0) * (c - 1.0) + c * c) / 2.0;
            assert_eq!(one.data()[at..at + 2], [first; 2], "{sample}");
            let [zero, other] = [c - 1.0, c].map(|p| (3.0 * p) * (3.0 * p) / 2.0);
            assert_eq!(two.data()[at..at + 2], [zero, other], "{sample}");
            assert_eq!(two.predicted().nth(sample as usize), Some(c as u16), "{sample}");
        }
        assert_eq!(two.accuracy(), 1.0);
        // Equal goodness is the first label's.
        assert!(one.predicted().all(|label| label == 0));
        assert!((one.accuracy() - 2.0 / 3.0).abs() < 1e-9, "{}", one.accuracy());
    }

    /// Whether the label fits the third number is what a block learns, and what is read off it.
    #[test]
    fn what_is_learnt_is_read() {
        let layers = [Layer::Dense(Dense::new(8)), RELU, UNITS];
        let net = Net { input: INPUT, layers: &layers, blocks: &[2, 3], features: 1 };
        let learning = Learning {
            way: Way::ForwardForward,
            epochs: 40,
            head_epochs: 1,
            batch: 32,
            ..Learning::default()
        };
        for seed in 0..3 {
            let mut fit = Fit::new(net, seed).unwrap();
            let (strategy, budget) = (learning.chosen(&[], 2), Budget::default());
            fit.run(&OnReference, &strategy, &mut Rows(96), &budget, &mut ()).unwrap();
            let score = fit.outcomes()[0].score;
            let read = Goodness::new(&OnReference, &fit.model(), &mut Rows(96), 2).unwrap();
            assert_eq!((score, read.accuracy()), (1.0, 1.0), "{seed}");
        }
    }

    #[test]
    fn memory_that_the_system_has_not_is_refused() {
        let input = Input { shape: Shape::new(1, 1, 2, 2), ..INPUT };
        let net =
            Net { input, layers: &[Layer::Flatten(Flatten), UNITS], blocks: &[2], features: 1 };
        let model = Model { net, weights: Weights::Flat(&[0.5; 8]) };
        let refused =
            Goodness::new(&OnReference, &model, &mut Rows(u32::MAX), 1 << 16).unwrap_err();
        let needed = u32::MAX as usize * (4 << 16);
        assert_eq!(refused, ArenaError::OutOfMemory { needed, given: 0 }.into());
    }

    #[test]
    fn what_labels_cannot_be_written_into_is_refused() {
        let layers = [UNITS, UNITS];
        let net = Net { input: INPUT, layers: &layers, blocks: &[1, 2], features: 1 };
        let model = Model { net, weights: Weights::Flat(&[0.5; 10]) };
        let refused = |net, classes| {
            Goodness::new(&OnReference, &Model { net, ..model }, &mut Rows(3), classes).unwrap_err()
        };
        for classes in [0, 1, 4] {
            let expected = PlanError::Label { classes, sample: INPUT.shape };
            assert_eq!(refused(net, classes), expected.into());
        }
        let range = PlanError::Range { first: 0, last: 0, layers: 2 };
        assert_eq!(refused(Net { features: 0, ..net }, 2), range.into());
        let mut features = Features::new(&OnReference, &model, &mut Rows(3), 1).unwrap();
        let applied = Goodness::new(&OnReference, &model, &mut features, 2).unwrap_err();
        assert_eq!(applied, PlanError::Raw { depth: 1 }.into());
    }
}
