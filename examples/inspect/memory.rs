//! The memory that a net needs: what a firmware reserves. On the reference backend:
//!
//! To infer: one sample, raw bytes, weights where they lie in the file. To train: batches of
//! [`BATCH`] raw samples of bytes, frozen layers one sample at a time, the trained layers'
//! parameters, gradients and optimiser state in RAM, all others where they lie in the file.
//!
//! On the backend for small cores: to infer the same; to tune one block, one sample at a time, with
//! embeddings in half precision.

use std::io::Write;

use sepal::infer::Inference;
use sepal::layer::{Flatten, L2Normalise, Layer};
use sepal::micro::{Embeddings, Micro, TuningPlan};
use sepal::models::recipe;
use sepal::net::{Model, Net};
use sepal::optim::Rule;
use sepal::plan::PlanError;
use sepal::reference::Reference;
use sepal::stage::{Cut, Loss, Objective, Recipe, Stage};
use sepal::train::{Feed, StagePlan};
use serde_json::{Value, json};

use crate::program::Failure;

/// Samples in a step.
pub const BATCH: u32 = 16;

/// What is compared.
const RULES: [(&str, Rule); 3] = [
    ("sgd", Rule::sgd()),
    ("momentum", Rule::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 }),
    ("adam", Rule::adam()),
];

/// The memory of some layers, in bytes; `None` where there is no plan.
pub struct Need {
    what: String,
    infer: Option<usize>,
    train: [Option<usize>; 3],
}

/// Each block of features by SI, the classifier by cross-entropy, and, to compare, all layers at
/// once, also one sample at a time, which is what accumulating gradients takes at least.
pub fn needs(model: &Model<'_>) -> Vec<Need> {
    let net = model.net;
    let (features, last) = (net.features_end(), net.layers.len());
    let narrow = model.weights.is_narrow();
    let whole = recipe::classifier(1);
    let mut needs = Vec::new();
    let mut need = |what: String, first: usize, last: usize, recipe: Recipe<'_>| {
        let range = (first, last);
        let infer = Inference::new(&Reference::new(&mut []), model, range, 1, true);
        let train =
            RULES.map(|(_, rule)| train(&net, range, Recipe { rule, ..recipe }, narrow).ok());
        needs.push(Need { what, infer: infer.ok().map(|plan| plan.bytes()), train });
    };
    for block in 0..usize::from(net.features) {
        if let Some((first, last)) = net.block(block) {
            let recipe = Recipe { batch: BATCH, ..recipe::block(1) };
            need(format!("block {} by SI", block + 1), first, last, recipe);
        }
    }
    if features < last {
        need("classifier".to_owned(), features, last, Recipe { batch: BATCH, ..whole });
    }
    need("whole net, end to end".to_owned(), 0, last, Recipe { batch: BATCH, ..whole });
    need("the same, batches of 1".to_owned(), 0, last, Recipe { batch: 1, ..whole });
    needs
}

/// Inference of the whole net, each block of features tuned by SI, the last layer by
/// cross-entropy.
pub fn small(model: &Model<'_>) -> Vec<Need> {
    const UNIT: &[Layer] = &[Layer::Flatten(Flatten), Layer::L2Normalise(L2Normalise)];
    let net = model.net;
    let narrow = model.weights.is_narrow();
    let whole = (0, net.layers.len());
    let infer = Inference::new(&Micro::<true>::new(&mut []), model, whole, 1, true);
    let infer = infer.ok().map(|plan| plan.bytes());
    let mut needs = vec![Need { what: "whole net".to_owned(), infer, train: [None; 3] }];
    let (features, blocks) = (usize::from(net.features), net.blocks.len());
    for block in (0..features).chain((features < blocks).then(|| blocks - 1)) {
        let Some((first, last)) = net.block(block) else { continue };
        let (what, head, objective) = match block < features {
            true => {
                let apart = Objective::Separation(Loss::Margin { margin: 0.2 });
                (format!("block {} by SI", block + 1), UNIT, apart)
            }
            false => {
                let labels = Objective::CrossEntropy { smoothing: 0.0 };
                (format!("block {}, the last", block + 1), &UNIT[..0], labels)
            }
        };
        let train = RULES.map(|(_, rule)| {
            let recipe = Recipe { head, objective, batch: BATCH, rule, ..recipe::block(1) };
            let (first, last) = (first as u16, last as u16);
            let stage = Stage { first, last, calibrate: false, cut: Cut::Whole, recipe };
            TuningPlan::new(net, &stage, Embeddings::F16, narrow).ok().map(|plan| plan.bytes())
        });
        needs.push(Need { what, infer: None, train });
    }
    needs
}

fn train(
    net: &Net<'_>,
    (first, last): (usize, usize),
    recipe: Recipe<'_>,
    narrow: bool,
) -> Result<usize, PlanError> {
    let stage =
        Stage { first: first as u16, last: last as u16, calibrate: true, cut: Cut::Whole, recipe };
    Ok(StagePlan::reference(net, &stage, Feed { narrow, ..Feed::BYTES })?.bytes())
}

impl Need {
    /// Each number with its name.
    fn each(&self) -> impl Iterator<Item = (&'static str, Option<usize>)> {
        let names = RULES.iter().map(|&(name, _)| name);
        std::iter::once(("infer", self.infer)).chain(names.zip(self.train))
    }

    pub fn json(&self, budget: Option<u64>) -> Value {
        let mut need = json!({"what": self.what});
        for (name, bytes) in self.each() {
            need[name] = bytes.into();
        }
        if budget.is_some() {
            let fitting = self.each().filter(|&(_, bytes)| fits(bytes, budget));
            need["fits"] = fitting.map(|(name, _)| name).collect::<Vec<_>>().into();
        }
        need
    }
}

fn fits(bytes: Option<usize>, budget: Option<u64>) -> bool {
    bytes.zip(budget).is_some_and(|(bytes, budget)| bytes as u64 <= budget)
}

/// One table.
pub fn print(
    on: &str,
    needs: &[Need],
    budget: Option<u64>,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    writeln!(out, "\nRAM in bytes on {on}: one sample to infer, batches of {BATCH} to train by")?;
    let [(sgd, _), (momentum, _), (adam, _)] = RULES;
    writeln!(out, "{:<23} {:>10} {sgd:>10} {momentum:>10} {adam:>10}", "", "infer")?;
    for need in needs {
        write!(out, "{:<23}", need.what)?;
        for (_, bytes) in need.each() {
            let mark = if fits(bytes, budget) { "*" } else { "" };
            let bytes = bytes.map_or_else(|| "-".to_owned(), |bytes| format!("{mark}{bytes}"));
            write!(out, " {bytes:>10}")?;
        }
        writeln!(out)?;
    }
    if let Some(budget) = budget {
        writeln!(out, "* fits in {budget} bytes")?;
    }
    Ok(())
}
