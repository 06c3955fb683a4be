//! Optimisers.

use sepal_core::error::Error;
use sepal_core::optim::{Rule, corrections};

use crate::gpu::{Address, Gpu, Launch, Source, args};

/// One update, counted from 1, of `len` parameters from their gradients and state.
pub(crate) fn update(
    gpu: &Gpu,
    rule: &Rule,
    (rate, update): (f32, u32),
    len: u32,
    [p, g, first, second]: [Address; 4],
) -> Result<(), Error> {
    let launch = Launch::over(len);
    let adam = |beta1: f32, beta2: f32, eps: f32, decay: f32, keep: f64| {
        let [rate, root] = corrections([beta1, beta2], rate.into(), update).map(|n| n as f32);
        let rest = |beta: f32| (1.0 - f64::from(beta)) as f32;
        let (mean_share, square_share, keep) = (rest(beta1), rest(beta2), keep as f32);
        let args = args![
            p,
            g,
            first,
            second,
            len,
            rate,
            decay,
            keep,
            mean_share,
            beta2,
            square_share,
            root,
            eps
        ];
        gpu.launch(Source::Optim, "adam", launch, args)
    };
    match *rule {
        Rule::Sgd { momentum: 0.0, weight_decay, .. } => {
            gpu.launch(Source::Optim, "sgd", launch, args![p, g, len, rate, weight_decay])
        }
        Rule::Sgd { momentum, nesterov, weight_decay } => {
            let nesterov = u32::from(nesterov);
            let args = args![p, g, first, len, rate, weight_decay, momentum, nesterov, update];
            gpu.launch(Source::Optim, "sgd_momentum", launch, args)
        }
        Rule::Adam { beta1, beta2, eps, weight_decay } => {
            adam(beta1, beta2, eps, weight_decay, 1.0)
        }
        Rule::AdamW { beta1, beta2, eps, weight_decay } => {
            adam(beta1, beta2, eps, 0.0, 1.0 - f64::from(rate) * f64::from(weight_decay))
        }
    }
}
