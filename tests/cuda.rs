//! A whole training on the CUDA backend, on a GPU where there is one, else on a stand-in: the losses
//! are the other backends', and a device that is lost takes nothing with it.

use std::sync::{Mutex, PoisonError};

use sepal::backend::Device;
use sepal::cpu::OnCpu;
use sepal::cuda::OnCuda;
use sepal::models::cache::Budget;
use sepal::models::data;
use sepal::models::fit::{Event, Fit, FitError, Snapshot, Watch, WatchError, Wish};
use sepal::models::lenet::LENET;
use sepal::models::recipe;
use sepal::reference::OnReference;
use sepal::stage::Recipe;
use sepal::strategy::{Classifier, ForwardSi, Window};
use sepal::train::Step;

/// How far losses of one training may lie apart on two backends: differences grow along it.
const APART: f32 = 2e-3;

/// Both tests look at one device, whose state is the process'.
static ONE: Mutex<()> = Mutex::new(());

/// Each of LeNet's blocks in batches of 32, then its classifier.
fn strategy() -> ForwardSi<'static> {
    let small = |recipe: Recipe<'static>| Recipe { batch: 32, ..recipe };
    ForwardSi {
        block: small(recipe::block(1)),
        heads: &[],
        window: Window::ONE,
        classifier: small(recipe::classifier(1)),
        form: Classifier::Whole,
    }
}

#[derive(Default)]
struct Losses {
    losses: Vec<f32>,
    /// The last snapshot: one is taken at every step.
    last: Option<Snapshot>,
}

impl Watch for Losses {
    fn event(&mut self, event: &Event<'_>) -> Wish {
        if let Event::Step(Step::Trained { score, .. }) = event {
            self.losses.push(score.value);
            return Wish::Snapshot;
        }
        Wish::Go
    }

    fn snapshot(&mut self, snapshot: &Snapshot) -> Result<(), WatchError> {
        self.last = Some(snapshot.clone());
        Ok(())
    }
}

fn train(device: &impl Device, fit: &mut Fit<'_>, images: u32) -> (Losses, Result<(), FitError>) {
    let images = data::bundled().train.head(images).unwrap();
    let mut losses = Losses::default();
    let done = fit.run(device, &strategy(), &mut &images, &Budget::default(), &mut losses);
    (losses, done)
}

fn whole(device: &impl Device, images: u32) -> Vec<f32> {
    let (losses, done) = train(device, &mut Fit::new(LENET, 1).unwrap(), images);
    done.unwrap();
    losses.losses
}

#[test]
fn losses_are_those_of_the_other_backends() {
    let _guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    sepal_stand_in::load();
    let on_cuda = whole(&OnCuda::open(0).unwrap(), 128);
    assert!(on_cuda.len() >= 10, "{} losses", on_cuda.len());
    for other in [whole(&OnReference, 128), whole(&OnCpu::new(), 128)] {
        assert_eq!(other.len(), on_cuda.len());
        for (step, (cuda, other)) in on_cuda.iter().zip(&other).enumerate() {
            let apart = (cuda - other).abs();
            assert!(apart <= APART, "step {step}: {cuda} on CUDA, {other} elsewhere");
        }
    }
}

#[test]
fn a_device_that_is_lost_takes_no_snapshot_with_it() {
    let _guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let sepal_stand_in::Gpu::StandIn(stand_in) = sepal_stand_in::load() else { return };
    stand_in.reset();
    let expected = whole(&OnCuda::open(0).unwrap(), 64);
    stand_in.reset();
    let device = OnCuda::open(0).unwrap();
    stand_in.lose_at(100);
    let (before, failed) = train(&device, &mut Fit::new(LENET, 1).unwrap(), 64);
    let failed = failed.expect_err("the device is lost").to_string();
    assert!(failed.contains("719"), "{failed}");
    let steps = before.losses.len();
    assert!(steps > 0 && steps < expected.len(), "{steps} steps were done");
    // Another device goes on from the last snapshot, and comes to the same losses.
    stand_in.reset();
    let snapshot = before.last.expect("one was taken at every step");
    let mut fit = Fit::resume(LENET, 1, snapshot).unwrap();
    let (after, done) = train(&OnCuda::open(0).unwrap(), &mut fit, 64);
    done.unwrap();
    assert_eq!([before.losses, after.losses].concat(), expected);
}
