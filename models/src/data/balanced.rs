//! Batches in which classes are equally frequent.

use sepal_core::arena::Layout;
use sepal_core::rng::{Permutation, Purpose, Rng};
use sepal_core::shape::Shape;
use sepal_core::source::{Batch, Draw, Source, SourceError};

/// A source that chooses batches by class.
///
/// With K classes that have samples, a batch of B places holds
///
/// - B / K samples of every class where B >= 2K; the B mod K places left over go around among
///   the classes from batch to batch;
/// - two samples each of B / 2 classes drawn at random where B < 2K (three of one class where B
///   is odd), so that every sample has a neighbour of its class.
///
/// A class with fewer samples than its share gives all it has, and the other classes of the batch
/// share its places; where they too have not enough, more classes join. So no batch has a sample
/// twice, unless it has more places than there are samples: it then begins with all of them.
///
/// Within a class samples come in a shuffled order, another one for each epoch and each time the
/// class is through. A class is through when it has too few samples left for a whole share:
/// those few sit out, since the next order could bring a sample twice into one batch. The choice
/// is a function of the draw alone, so a resumed run goes on as if it was never stopped.
///
/// ```
/// use sepal_core::shape::Shape;
/// use sepal_core::source::{Draw, Source};
/// use sepal_models::data::{ClassBalanced, Dataset, Samples};
///
/// let labels = vec![0, 0, 0, 0, 0, 0, 0, 1, 1];
/// let names = vec!["often".into(), "seldom".into()];
/// let rows = Samples::F32(vec![0.5; 9]);
/// let source = ClassBalanced::new(Dataset::new(Shape::rows(1, 1), rows, labels, names)?)?;
/// let mut batch = [0; 4];
/// let places = batch.len() as u32;
/// source.pick(Draw { seed: 1, epoch: 0, step: 5 }, places, 0, &mut batch);
/// assert_eq!(batch.iter().filter(|&&index| index >= 7).count(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct ClassBalanced<S> {
    source: S,
    /// The samples of each class that has any, in the order of labels.
    classes: Vec<Vec<u32>>,
}

impl<S: Source> ClassBalanced<S> {
    /// Reads all samples once, for their labels.
    ///
    /// # Errors
    /// A sample that could not be read.
    pub fn new(mut source: S) -> Result<Self, SourceError> {
        let size = source.layout().elements(source.shape()).unwrap_or(0) as usize;
        let mut bytes = vec![0u8; if source.is_u8() { size } else { 0 }];
        let mut numbers = vec![0f32; if source.is_u8() { 0 } else { size }];
        let mut classes: Vec<Vec<u32>> = Vec::new();
        for index in 0..source.len() {
            let batch = match source.is_u8() {
                true => Batch::U8(&mut bytes),
                false => Batch::F32(&mut numbers),
            };
            let mut label = [0];
            source.read(&[index], None, batch, &mut label)?;
            let [label] = label.map(usize::from);
            if classes.len() <= label {
                classes.resize(label + 1, Vec::new());
            }
            classes.iter_mut().skip(label).take(1).for_each(|class| class.push(index));
        }
        classes.retain(|class| !class.is_empty());
        Ok(Self { source, classes })
    }

    /// The source that samples come from.
    pub fn source(&self) -> &S {
        &self.source
    }

    /// Chooses all samples of a batch.
    fn batch(&self, draw: Draw, indices: &mut [u32]) {
        let samples: usize = self.classes.iter().map(Vec::len).sum();
        if samples == 0 {
            return indices.fill(0);
        }
        let rest = indices.len() % samples;
        let (all, places) = indices.split_at_mut(indices.len() - rest);
        all.iter_mut().zip(self.classes.iter().flatten().cycle()).for_each(|(i, &j)| *i = j);
        if places.is_empty() {
            return;
        }
        let count = self.classes.len();
        if places.len() >= 2 * count {
            let order = shuffle(draw, ORDER_OF_CLASSES, 0, count);
            let chosen: Vec<u32> = (0..count as u32).map(|turn| order.get(turn)).collect();
            return self.fill(draw, &chosen, draw.step, usize::MAX, places);
        }
        // A round is as many batches as have room for different classes, in one order of the
        // classes: each class has at most one turn in it.
        let wanted = (places.len() / 2).max(1);
        let batches = (count / wanted).max(1);
        let (round, batch) = (draw.step / batches as u32, draw.step as usize % batches);
        let order = shuffle(draw, ORDER_OF_CLASSES, round, count);
        let mut chosen = Vec::with_capacity(wanted);
        let mut room = 0;
        for turn in 0..count {
            if chosen.len() >= wanted && room >= places.len() {
                break;
            }
            let class = order.get(((batch * wanted + turn) % count) as u32);
            room += self.classes.get(class as usize).map_or(0, Vec::len);
            chosen.push(class);
        }
        self.fill(draw, &chosen, round, 2 + places.len() % 2, places);
    }

    /// Fills places from the chosen classes, as evenly as their sizes allow. `visit` counts how
    /// often a class had its turn in this epoch, `share` limits what a turn uses up.
    fn fill(&self, draw: Draw, chosen: &[u32], visit: u32, share: usize, places: &mut [u32]) {
        let class = |&number: &u32| self.classes.get(number as usize).map_or(&[][..], |c| c);
        let given = |level: usize| {
            chosen.iter().map(|number| class(number).len().min(level)).sum::<usize>()
        };
        // The largest level such that no class gives more and the batch does not overflow.
        let largest = chosen.iter().map(|number| class(number).len()).max().unwrap_or(0);
        let (mut level, mut above) = (0, largest.min(places.len()) + 1);
        while above - level > 1 {
            let middle = level + (above - level) / 2;
            if given(middle) <= places.len() { level = middle } else { above = middle }
        }
        let left = places.len() - given(level);
        let open = chosen.iter().filter(|number| class(number).len() > level).count().max(1);
        // Among the classes that have more, the places left over go around.
        let begin = (u64::from(draw.step) * left as u64 % open as u64) as usize;
        let mut place = places.iter_mut();
        let mut turn = 0;
        for number in chosen {
            let samples = class(number);
            let mut count = samples.len().min(level);
            if samples.len() > level {
                count += usize::from((turn + open - begin) % open < left);
                turn += 1;
            }
            // A turn takes the next `stride` samples of the order; `count` is no more, but where
            // classes of one leave places to the others.
            let stride = share.min(level + usize::from(left > 0)).clamp(1, samples.len().max(1));
            let turns = (samples.len() / stride).max(1) as u32;
            let order = shuffle(draw, *number, visit / turns, samples.len());
            let first = visit % turns * stride as u32;
            for (place, at) in place.by_ref().take(count).zip(first..) {
                *place = samples.get(order.get(at) as usize).copied().unwrap_or(0);
            }
        }
    }
}

/// The sample number under which the orders of classes are drawn; no class has it.
const ORDER_OF_CLASSES: u32 = u32::MAX;

/// The order of a class's samples the n-th time, or of the classes in the n-th round.
fn shuffle(draw: Draw, class: u32, time: u32, len: usize) -> Permutation {
    let [low, high, ..] = Rng::new(draw.seed, Purpose::Sample, draw.epoch, class).at(time);
    Permutation::new(u64::from(high) << 32 | u64::from(low), draw.epoch, len as u32)
}

impl<S: Source> Source for ClassBalanced<S> {
    fn len(&self) -> u32 {
        self.source.len()
    }

    fn shape(&self) -> Shape {
        self.source.shape()
    }

    fn is_u8(&self) -> bool {
        self.source.is_u8()
    }

    fn depth(&self) -> usize {
        self.source.depth()
    }

    fn layout(&self) -> Layout {
        self.source.layout()
    }

    fn pick(&self, draw: Draw, batch: u32, first: u32, indices: &mut [u32]) {
        let mut whole = vec![0; batch as usize];
        self.batch(draw, &mut whole);
        indices.iter_mut().zip(whole.iter().skip(first as usize)).for_each(|(i, &j)| *i = j);
    }

    fn read(
        &mut self,
        indices: &[u32],
        draw: Option<Draw>,
        batch: Batch<'_>,
        labels: &mut [u16],
    ) -> Result<(), SourceError> {
        self.source.read(indices, draw, batch, labels)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Dataset, Samples};
    use super::*;
    use std::collections::{HashMap, HashSet};

    /// A source with so many samples of each class, dealt out in turn.
    fn source(sizes: &[usize]) -> ClassBalanced<Dataset> {
        let mut labels = Vec::new();
        for round in 0..sizes.iter().copied().max().unwrap() {
            for (class, &size) in sizes.iter().enumerate() {
                if round < size {
                    labels.push(class as u16);
                }
            }
        }
        let names = (0..sizes.len()).map(|class| class.to_string()).collect();
        let data = Samples::U8(vec![1; labels.len()]);
        let set = Dataset::new(Shape::rows(1, 1), data, labels, names).unwrap();
        ClassBalanced::new(set).unwrap()
    }

    fn pick(source: &ClassBalanced<Dataset>, epoch: u32, step: u32, places: usize) -> Vec<u32> {
        let mut indices = vec![u32::MAX; places];
        source.pick(Draw { seed: 11, epoch, step }, places as u32, 0, &mut indices);
        indices
    }

    /// How many places each class got.
    fn shares(source: &ClassBalanced<Dataset>, batch: &[u32]) -> Vec<usize> {
        let mut shares = vec![0; source.source().names().len()];
        batch.iter().for_each(|&i| shares[source.source().labels()[i as usize] as usize] += 1);
        shares
    }

    #[test]
    fn every_class_has_its_share_and_the_rest_goes_around() {
        let source = source(&[50, 40, 30]);
        let mut totals = [0; 3];
        for step in 0..30 {
            let shares = shares(&source, &pick(&source, 0, step, 11));
            assert!(shares.iter().all(|&share| share == 3 || share == 4), "{shares:?}");
            totals.iter_mut().zip(&shares).for_each(|(total, share)| *total += share);
        }
        // 330 places among three classes.
        assert_eq!(totals, [110; 3]);
        assert_eq!(shares(&source, &pick(&source, 0, 7, 6)), [2; 3]);
    }

    #[test]
    fn few_places_go_to_pairs_of_some_classes() {
        let source = source(&[9; 10]);
        let mut seen = [0; 10];
        for step in 0..1000 {
            for places in [2, 6, 19] {
                let mut shares = shares(&source, &pick(&source, 0, step, places));
                if places == 6 {
                    seen.iter_mut().zip(&shares).for_each(|(seen, share)| *seen += share / 2);
                }
                shares.sort();
                let pairs = shares.iter().filter(|&&share| share == 2).count();
                let threes = shares.iter().filter(|&&share| share == 3).count();
                assert_eq!((pairs, threes), (places / 2 - places % 2, places % 2), "{shares:?}");
            }
        }
        // Three of ten classes a batch: 300 each, and at most one a round apart for long.
        assert!(seen.iter().all(|&count| (250..=333).contains(&count)), "{seen:?}");
        let firsts: HashSet<_> =
            (0..50).map(|step| shares(&source, &pick(&source, 0, step, 6))).collect();
        assert!(firsts.len() > 20, "the same classes come together: {}", firsts.len());
        assert_eq!(pick(&source, 0, 0, 1).len(), 1);
        assert!(pick(&source, 0, 0, 1)[0] < 90);
        assert!(pick(&source, 0, 0, 0).is_empty());
    }

    #[test]
    fn a_class_gives_each_sample_once_before_it_begins_again() {
        // Shares of 4 and sizes of 12 and 8: through after 3 and 2 batches.
        let balanced = source(&[12, 8]);
        let mut orders = HashSet::new();
        for (class, size, batches) in [(0, 12, 3), (1, 8, 2)] {
            for cycle in 0..20 {
                let drawn: Vec<u32> = (cycle * batches..(cycle + 1) * batches)
                    .flat_map(|step| pick(&balanced, 0, step, 8))
                    .filter(|&i| balanced.source().labels()[i as usize] == class)
                    .collect();
                assert_eq!(drawn.iter().collect::<HashSet<_>>().len(), size);
                assert_eq!(drawn.len(), size);
                orders.insert(drawn);
            }
        }
        assert_eq!(orders.len(), 40, "orders repeat");
        // Pairs of 10 classes of 8, 4 places: a round is 5 batches, all are through after 4.
        let balanced = source(&[8; 10]);
        let drawn: HashSet<u32> = (0..20).flat_map(|step| pick(&balanced, 3, step, 4)).collect();
        assert_eq!(drawn.len(), 80);
        // Over many orders every sample is as likely, those that sit out too.
        let balanced = source(&[5, 5]);
        let mut counts = HashMap::new();
        (0..5000).flat_map(|step| pick(&balanced, 0, step, 6)).for_each(|i| {
            *counts.entry(i).or_insert(0u32) += 1;
        });
        assert!(
            counts.len() == 10 && counts.values().all(|c| c.abs_diff(3000) < 200),
            "{counts:?}"
        );
    }

    #[test]
    fn small_classes_leave_their_places_to_others() {
        // Shares of 4, but class 1 has one sample and class 2 three.
        let source = source(&[20, 1, 3]);
        for step in 0..40 {
            let batch = pick(&source, 0, step, 12);
            assert_eq!(shares(&source, &batch), [8, 1, 3]);
        }
        // Only classes of one: as many different samples as there are places.
        let ones = super::tests::source(&[1; 7]);
        for places in 1..=7 {
            let batch = pick(&ones, 0, 3, places);
            assert_eq!(batch.iter().collect::<HashSet<_>>().len(), places);
        }
    }

    #[test]
    fn no_batch_has_a_sample_twice() {
        let classes: [&[usize]; 7] = [
            &[1],
            &[5],
            &[2, 1],
            &[3, 1, 7, 2],
            &[1, 1, 1, 30],
            &[4, 4, 4, 4, 4, 4, 4],
            &[1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 1, 1],
        ];
        for sizes in classes {
            let source = source(sizes);
            let total: usize = sizes.iter().sum();
            for places in 1..=total {
                for step in 0..40 {
                    let batch = pick(&source, 1, step, places);
                    let different: HashSet<_> = batch.iter().collect();
                    assert_eq!(different.len(), places, "{sizes:?} {places} {step} {batch:?}");
                    assert!(batch.iter().all(|&i| (i as usize) < total));
                }
            }
            // More places than samples: every sample is there as often as it must be.
            let batch = pick(&source, 1, 4, 2 * total + 1);
            let mut counts = vec![0; total];
            batch.iter().for_each(|&i| counts[i as usize] += 1);
            assert!(counts.iter().all(|&count| count == 2 || count == 3), "{counts:?}");
        }
    }

    #[test]
    fn the_draw_decides() {
        let source = source(&[30, 30, 30]);
        for places in [4, 9] {
            let one = pick(&source, 2, 5, places);
            assert_eq!(one, pick(&source.clone(), 2, 5, places));
            assert_ne!(one, pick(&source, 3, 5, places));
            assert_ne!(one, pick(&source, 2, 6, places));
            let mut other = vec![0; places];
            source.pick(Draw { seed: 12, epoch: 2, step: 5 }, other.len() as u32, 0, &mut other);
            assert_ne!(one, other);
            pick(&source, u32::MAX, u32::MAX, places);
        }
    }

    #[test]
    fn labels_without_samples_are_no_classes() {
        let names = (0..9).map(|class| class.to_string()).collect();
        let data = Samples::F32(vec![0.5; 8]);
        let labels = vec![8, 8, 3, 3, 3, 8, 3, 8];
        let set = Dataset::new(Shape::rows(1, 1), data, labels, names).unwrap();
        let mut source = ClassBalanced::new(set).unwrap();
        let batch = pick(&source, 0, 0, 4);
        assert_eq!(shares(&source, &batch), [0, 0, 0, 2, 0, 0, 0, 0, 2]);
        let (mut data, mut labels) = ([0.0; 4], [0; 4]);
        source.read(&batch, None, Batch::F32(&mut data), &mut labels).unwrap();
        labels.sort();
        assert_eq!(labels, [3, 3, 8, 8]);
    }
}
