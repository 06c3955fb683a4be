//! Judging features and classifiers on whole data sets.

use sepal_core::backend::{Backend, Bank, Device};
use sepal_core::error::Error;
use sepal_core::layer::{Dense, Layer, Standardise};
use sepal_core::neighbour::{Pair, Rows};
use sepal_core::net::{Input, Net, Normalisation};
use sepal_core::si::{self, Tally};
use sepal_core::source::Source;
use sepal_core::stage::{Cut, Outcome, Recipe, Stage};
use sepal_core::strategy::Strategy;

use crate::cache::Budget;
use crate::features::Features;
use crate::fit::{Fit, FitError};
use crate::recipe;

impl Features {
    /// The features as rows of a search.
    pub fn rows(&self) -> Rows<'_> {
        Rows { data: self.data(), dim: self.dim(), labels: self.labels() }
    }

    /// For each sample its nearest neighbours among the others.
    ///
    /// # Errors
    /// A device that failed.
    pub fn pairs<D: Device>(&self, device: &D) -> Result<Vec<Pair>, Error> {
        let mut pairs = vec![Pair::NONE; self.labels().len()];
        let rows = Bank::Host(self.rows());
        device.open(&mut [])?.nearest(rows, rows, 0, Some(0), &mut pairs)?;
        Ok(pairs)
    }

    /// SI: the share of samples whose nearest other sample has their label (Eq. 1).
    ///
    /// # Errors
    /// A device that failed.
    pub fn si<D: Device>(&self, device: &D) -> Result<Tally, Error> {
        Ok(si::si(&self.pairs(device)?))
    }

    /// Cross-SI: the share of samples whose nearest sample in `bank` has their label; the
    /// accuracy of the nearest-neighbour classifier that has `bank` in store.
    ///
    /// # Errors
    /// Rows of different lengths, a device that failed.
    pub fn cross_si<D: Device>(&self, device: &D, bank: &Self) -> Result<Tally, Error> {
        let mut pairs = vec![Pair::NONE; self.labels().len()];
        let (queries, bank) = (Bank::Host(self.rows()), Bank::Host(bank.rows()));
        device.open(&mut [])?.nearest(queries, bank, 0, None, &mut pairs)?;
        Ok(si::si(&pairs))
    }

    /// For each row the place of its largest number; the first of several. NaN is never largest.
    pub fn largest(&self) -> Vec<u16> {
        let place = |row: &[f32]| {
            let best = row.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (at, &x)| {
                if x > best.1 { (at, x) } else { best }
            });
            best.0 as u16
        };
        self.data().chunks_exact(self.dim().max(1)).map(place).collect()
    }

    /// The share of rows whose largest number is at the place of their label: the accuracy,
    /// where the rows are logits.
    pub fn accuracy(&self) -> f64 {
        let right = self.largest().iter().zip(self.labels()).filter(|(a, b)| a == b).count();
        right as f64 / self.labels().len().max(1) as f64
    }

    /// The test accuracy of a linear classifier on standardised features, trained on these.
    ///
    /// # Errors
    /// A device that failed.
    pub fn linear_accuracy<D: Device>(
        &self,
        device: &D,
        test: &Self,
        classes: u32,
        epochs: u16,
        seed: u64,
    ) -> Result<f64, FitError> {
        let layers =
            [Layer::Standardise(Standardise), Layer::Dense(Dense { units: classes, bias: true })];
        let input = Input { shape: self.shape(), normalisation: Normalisation::NONE };
        let net = Net { input, layers: &layers, blocks: &[2], features: 0 };
        let mut fit = Fit::new(net, seed)?;
        fit.run(
            device,
            &Linear { epochs, samples: self.labels().len() as u32 },
            &mut self.clone().into_input(),
            &Budget::bytes(0),
            &mut (),
        )?;
        let logits = Self::new(device, &fit.model(), &mut test.clone().into_input(), 2)?;
        Ok(logits.accuracy())
    }
}

/// A classifier alone, with standardisation measured first.
struct Linear {
    epochs: u16,
    samples: u32,
}

impl Strategy for Linear {
    fn next(&self, net: &Net<'_>, done: &[Outcome]) -> Option<Stage<'_>> {
        let recipe = recipe::classifier(self.epochs);
        let recipe = Recipe { batch: recipe.batch.min(self.samples), ..recipe };
        let last = net.layers.len() as u16;
        done.is_empty().then_some(Stage {
            first: 0,
            last,
            calibrate: true,
            cut: Cut::Whole,
            recipe,
        })
    }
}
