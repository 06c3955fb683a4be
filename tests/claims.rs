//! What the paper says of its method, on the bundled images. That disturbances fade from block to block
//! is held in the core's tests of learning.
#![cfg(all(feature = "cpu", feature = "models"))]

use sepal::cpu::OnCpu;
use sepal::layer::Layer;
use sepal::models::cache::Budget;
use sepal::models::data;
use sepal::models::features::Features;
use sepal::models::fit::Fit;
use sepal::models::learning::{Learning, Way};
use sepal::models::lenet::LENET;
use sepal::stage::Loss;

/// The paper finds a rate of 0.5 unfavourable for back-propagation and for its own method, and 0.01
/// right. Here 0.5 leaves a net that learns end to end at chance; blocks by SI, whose features have length
/// 1, do learn at it.
#[test]
fn half_is_too_high_a_rate_end_to_end() {
    let split = data::bundled();
    let device = OnCpu::new();
    let head = |learning: Learning| {
        let heads = learning.heads(&LENET, 10).unwrap();
        let heads: Vec<&[Layer]> = heads.iter().map(Vec::as_slice).collect();
        let strategy = learning.chosen(&heads, 10);
        let mut fit = Fit::new(LENET, 0).unwrap();
        fit.run(&device, &strategy, &mut &split.train, &Budget::default(), &mut ()).unwrap();
        let logits =
            Features::new(&device, &fit.model(), &mut &split.test, LENET.layers.len()).unwrap();
        logits.accuracy()
    };
    let short = Learning { epochs: 3, head_epochs: 5, ..Learning::default() };
    let back = Learning { way: Way::EndToEnd, ..short };
    let triplet = Learning { loss: Loss::Triplet, ..short };
    for learning in [short, triplet, back] {
        let [right, high] = [0.01, 0.5].map(|rate| head(Learning { rate, ..learning }));
        assert!(right > 0.7, "{learning:?}: {right}");
        let chance = high < 0.2;
        assert_eq!(chance, learning.way == Way::EndToEnd, "{learning:?}: {high}");
        assert!(chance || high > 0.65, "{learning:?}: {high}");
    }
}
