//! What a trained net is worth.

use sepal::backend::Device;
use sepal::models::data::Dataset;
use sepal::models::features::Features;
use sepal::models::fit::FitError;
use sepal::net::Weights;
use sepal::net::{Model, Net, Normalisation};

/// What a block has learnt.
pub struct Row {
    /// One past its last layer.
    pub end: usize,
    pub name: String,
    pub shape: String,
    pub parameters: usize,
    pub si: Option<f64>,
    pub cross_si: Option<f64>,
}

/// Test accuracy of three classifiers on one net.
#[derive(Clone, Copy)]
pub struct Accuracy {
    pub nearest: f64,
    pub linear: f64,
    pub head: f64,
}

/// What a trained net is measured on.
pub struct Judge<'a, D> {
    pub device: &'a D,
    /// Training images: those that SI is measured on, and the nearest neighbour's bank.
    pub bank: Dataset,
    pub train: &'a Dataset,
    pub test: &'a Dataset,
    pub classes: u32,
    pub epochs: u16,
    pub seed: u64,
}

impl<D: Device> Judge<'_, D> {
    /// What the layers before `end` make of samples, scaled to length 1.
    pub fn features(
        &self,
        model: &Model<'_>,
        mut set: &Dataset,
        end: usize,
    ) -> Result<Features, FitError> {
        let net = model.net;
        // The raw input: no layer has run, only the input's own scale is left out.
        let raw = Net {
            input: sepal::net::Input { normalisation: Normalisation::NONE, ..net.input },
            ..net
        };
        let none = Model { net: raw, weights: Weights::Flat(&[]) };
        let model = if end == 0 { &none } else { model };
        Ok(Features::new(self.device, model, &mut set, end)?.unit())
    }

    /// SI and cross-SI of the raw input and behind each of the layers `ends`.
    pub fn rows(&self, model: &Model<'_>, ends: &[usize]) -> Result<Vec<Row>, FitError> {
        let net = model.net;
        let mut rows = Vec::new();
        let mut first = 0;
        for (block, &end) in std::iter::once(&0).chain(ends).enumerate() {
            let bank = self.features(model, &self.bank, end)?;
            let test = self.features(model, self.test, end)?;
            let shape = net.shape(end)?;
            rows.push(Row {
                end,
                name: if end == 0 { "raw input".to_owned() } else { format!("block {block}") },
                shape: format!("{}x{}x{}", shape.c, shape.h, shape.w),
                parameters: net.params(end)? - net.params(first)?,
                si: bank.si(self.device)?.value(),
                cross_si: test.cross_si(self.device, &bank)?.value(),
            });
            first = end;
        }
        Ok(rows)
    }

    /// The nearest neighbour in the last features, a linear classifier on them, the net's head.
    pub fn accuracy(&self, model: &Model<'_>) -> Result<Accuracy, FitError> {
        let net = model.net;
        let end = net.features_end();
        let train = Features::new(self.device, model, &mut &*self.train, end)?;
        let mut test = Features::new(self.device, model, &mut &*self.test, end)?;
        let bank = self.features(model, &self.bank, end)?;
        let nearest = test.clone().unit().cross_si(self.device, &bank)?.value();
        let linear =
            train.linear_accuracy(self.device, &test, self.classes, self.epochs, self.seed)?;
        let logits = Features::new(self.device, model, &mut test, net.layers.len())?;
        Ok(Accuracy { nearest: nearest.unwrap_or(0.0), linear, head: logits.accuracy() })
    }
}
