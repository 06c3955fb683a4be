//! The confusion matrix, and what is read off it.

/// How often each class was predicted for samples of each class.
pub struct Confusion {
    classes: usize,
    /// (true, predicted), row by row.
    counts: Vec<u64>,
}

impl Confusion {
    /// Counts true labels against predicted ones; those of neither class are left out.
    pub fn new(classes: usize, truth: &[u16], predicted: &[u16]) -> Self {
        let mut counts = vec![0; classes * classes];
        for (&truth, &predicted) in truth.iter().zip(predicted) {
            let (truth, predicted) = (usize::from(truth), usize::from(predicted));
            if truth < classes && predicted < classes {
                counts[truth * classes + predicted] += 1;
            }
        }
        Self { classes, counts }
    }

    /// A row for each true class.
    pub fn rows(&self) -> impl Iterator<Item = &[u64]> {
        self.counts.chunks(self.classes.max(1))
    }

    /// All samples.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Samples of a class.
    pub fn samples(&self, class: usize) -> u64 {
        self.rows().nth(class).map_or(0, |row| row.iter().sum())
    }

    /// Samples of a class that were recognised.
    fn right(&self, class: usize) -> u64 {
        self.rows().nth(class).and_then(|row| row.get(class)).copied().unwrap_or(0)
    }

    /// The share of all samples that were recognised.
    pub fn accuracy(&self) -> Option<f64> {
        share((0..self.classes).map(|class| self.right(class)).sum(), self.total())
    }

    /// The share of a class's samples that were recognised.
    pub fn recall(&self, class: usize) -> Option<f64> {
        share(self.right(class), self.samples(class))
    }

    /// The share of a class's predictions that were right.
    pub fn precision(&self, class: usize) -> Option<f64> {
        let predicted = self.rows().filter_map(|row| row.get(class)).sum();
        share(self.right(class), predicted)
    }

    /// The mean recall of the classes that have samples.
    pub fn balanced_accuracy(&self) -> Option<f64> {
        let recalls: Vec<f64> = (0..self.classes).filter_map(|class| self.recall(class)).collect();
        (!recalls.is_empty()).then(|| recalls.iter().sum::<f64>() / recalls.len() as f64)
    }
}

fn share(part: u64, all: u64) -> Option<f64> {
    (all > 0).then(|| part as f64 / all as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_classes_one_without_samples() {
        let confusion = Confusion::new(3, &[0, 0, 0, 0, 1, 1], &[0, 0, 0, 1, 1, 2]);
        let rows: Vec<_> = confusion.rows().collect();
        assert_eq!(rows, [[3, 1, 0], [0, 1, 1], [0, 0, 0]]);
        assert_eq!(confusion.accuracy(), Some(4.0 / 6.0));
        assert_eq!(confusion.balanced_accuracy(), Some((0.75 + 0.5) / 2.0));
        assert_eq!([0, 1, 2].map(|c| confusion.recall(c)), [Some(0.75), Some(0.5), None]);
        assert_eq!([0, 1, 2].map(|c| confusion.precision(c)), [Some(1.0), Some(0.5), Some(0.0)]);
        assert_eq!(Confusion::new(0, &[], &[]).accuracy(), None);
    }
}
