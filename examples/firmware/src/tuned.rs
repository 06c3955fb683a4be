//! What is tuned of LeNet-5, a stage each: by separation of embeddings of unit length, or by labels.

use sepal_core::layer::{Flatten, L2Normalise, Layer};
use sepal_core::optim::Rule;
use sepal_core::schedule::Schedule;
use sepal_core::stage::{Cut, Loss, Objective, Recipe, Stage, Stop};

/// The first block, the second, and the last layer, as layers.
pub const BLOCK1: (u16, u16) = (0, 3);
pub const BLOCK2: (u16, u16) = (3, 6);
pub const LAST: (u16, u16) = (11, 12);

/// Gradient descent with momentum.
pub const MOMENTUM: Rule = Rule::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 };

const UNIT: &[Layer] = &[Layer::Flatten(Flatten), Layer::L2Normalise(L2Normalise)];

/// A block by separation.
pub const fn apart(
    layers: (u16, u16),
    rule: Rule,
    rate: f32,
    schedule: Schedule,
) -> Stage<'static> {
    let objective = Objective::Separation(Loss::Margin { margin: 0.2 });
    stage(layers, UNIT, objective, (rule, rate, schedule))
}

/// The last layer by cross-entropy.
pub const fn labels(rule: Rule, rate: f32, schedule: Schedule) -> Stage<'static> {
    stage(LAST, &[], Objective::CrossEntropy { smoothing: 0.0 }, (rule, rate, schedule))
}

/// In batches of 16 samples.
const fn stage(
    (first, last): (u16, u16),
    head: &'static [Layer],
    objective: Objective,
    (rule, rate, schedule): (Rule, f32, Schedule),
) -> Stage<'static> {
    let (epochs, batch, stop) = (1, 16, Stop::Never);
    let micro_batches = 1;
    let recipe =
        Recipe { head, objective, epochs, batch, micro_batches, rule, rate, schedule, stop };
    Stage { first, last, calibrate: false, cut: Cut::Whole, recipe }
}
