//! What the host and the bare program both do with the golden model, to the bit.

use sepal_core::arena::Word;
use sepal_core::error::Error;
use sepal_core::infer::Inference;
use sepal_core::layer::{Flatten, L2Normalise, Layer, Role};
use sepal_core::net::Model;
use sepal_core::optim::Rule;
use sepal_core::reference::Reference;
use sepal_core::schedule::Schedule;
use sepal_core::shape::Shape;
use sepal_core::source::{Batch, Draw, Source, SourceError};
use sepal_core::stage::{Cut, Loss, Objective, Recipe, Stage, Stop};
use sepal_core::train::{Feed, Session, StagePlan, Step};

/// Classes of the golden model.
pub const CLASSES: usize = 10;
/// Training steps that are compared.
pub const STEPS: usize = 3;
/// Memory that both need.
pub const WORDS: usize = 160 * 1024 / Word::BYTES;

/// The logits of one sample.
pub fn infer(
    memory: &mut [Word],
    model: &Model<'_>,
    sample: &[u8],
) -> Result<[f32; CLASSES], Error> {
    let mut backend = Reference::new(memory);
    let plan = Inference::new(&backend, model, (0, model.net.layers.len()), 1, true)?;
    let mut logits = [0.0; CLASSES];
    let fill = |raw: &mut [u8]| raw.iter_mut().zip(sample).for_each(|(to, from)| *to = *from);
    plan.run(&mut backend, model, 1, fill, &mut logits)?;
    Ok(logits)
}

/// Stripes of a direction and a width that depend on the class.
pub struct Stripes;

impl Source for Stripes {
    fn len(&self) -> u32 {
        24
    }

    fn shape(&self) -> Shape {
        Shape::new(1, 1, 28, 28)
    }

    fn is_u8(&self) -> bool {
        true
    }

    fn read(
        &mut self,
        indices: &[u32],
        _: Option<Draw>,
        x: Batch<'_>,
        labels: &mut [u16],
    ) -> Result<(), SourceError> {
        let Batch::U8(x) = x else { return Err(SourceError::Batch { expected: 0, got: 0 }) };
        for ((image, label), index) in x.chunks_exact_mut(28 * 28).zip(labels).zip(indices) {
            *label = (index % 4) as u16;
            let width = 2 + u32::from(*label) / 2;
            for (at, pixel) in (0u32..).zip(image) {
                let along = if index % 2 == 0 { at / 28 } else { at % 28 };
                *pixel = ((along + index / 4) / width % 2 * (90 + 5 * index)) as u8;
            }
        }
        Ok(())
    }
}

/// The second block, the first one frozen.
pub const STAGE: Stage<'static> = Stage {
    first: 4,
    last: 8,
    calibrate: true,
    cut: Cut::Whole,
    recipe: Recipe {
        head: &[Layer::Flatten(Flatten), Layer::L2Normalise(L2Normalise)],
        objective: Objective::Separation(Loss::Margin { margin: 0.2 }),
        epochs: 1,
        batch: 8,
        micro_batches: 1,
        rule: Rule::adam(),
        rate: 0.01,
        schedule: Schedule::Constant,
        stop: Stop::Never,
    },
};

/// The bits of the losses of the first steps, then a sum over the bits of the weights after them.
/// `stage` is [`STAGE`], whatever the compiler knows of it.
pub fn train(
    memory: &mut [Word],
    model: &Model<'_>,
    stage: &Stage<'_>,
) -> Result<[u32; STEPS + 1], Error> {
    let mut backend = Reference::new(memory);
    let feed = Feed { narrow: model.weights.is_narrow(), ..Feed::of(&Stripes) };
    let plan = StagePlan::new(&backend, &model.net, stage, feed)?;
    let mut session = Session::new(model.net, *stage, plan, 7, 0);
    session.load(&mut backend, model)?;
    let mut bits = [0; STEPS + 1];
    for bits in bits.iter_mut().take(STEPS) {
        if let Step::Trained { score, .. } = session.step(&mut backend, model, &mut Stripes)? {
            *bits = score.value.to_bits();
        }
    }
    let mut weights = [0.0f32; 8 * 4 * 5 * 5];
    session.save(&mut backend, 4, Role::Weight, &mut weights)?;
    let sum = weights.iter().fold(0u32, |sum, w| sum.rotate_left(5) ^ w.to_bits());
    if let Some(last) = bits.last_mut() {
        *last = sum;
    }
    Ok(bits)
}
