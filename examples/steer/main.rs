//! Steers nets by SI: how deep, how wide, which filters stay, and what SI tells beforehand.

#[path = "../common/classes.rs"]
mod classes;
mod depth;
#[path = "../common/device.rs"]
mod device;
#[path = "../common/digest.rs"]
mod digest;
#[path = "../common/gpu.rs"]
mod gpu;
mod options;
#[path = "../common/order.rs"]
mod order;
#[path = "../common/positive.rs"]
mod positive;
#[path = "../common/program.rs"]
mod program;
mod prune;
mod rank;
#[path = "../common/set.rs"]
mod set;
#[path = "../common/stop.rs"]
mod stop;
#[path = "../common/warn.rs"]
mod warn;
mod width;
mod work;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Steers nets by held-out SI: the share of samples that nothing is trained on whose nearest training
/// sample has their class.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Grow a net block by block while held-out SI rises
    Depth(depth::Args),
    /// Choose the filters of each block by held-out SI
    Width(width::Args),
    /// Cut filters of trained blocks out of a net, by SI and by controls
    Prune(prune::Args),
    /// Say how far SI tells the accuracies of data sets, or of nets, beforehand
    Rank(rank::Args),
}

fn main() -> ExitCode {
    let args = Args::parse();
    let code = program::run(|out| {
        stop::listen()?;
        match &args.what {
            What::Depth(args) => {
                gpu::on!(args.options.device()?, device => depth::run(&device, args, out))
            }
            What::Width(args) => {
                gpu::on!(args.options.device()?, device => width::run(&device, args, out))
            }
            What::Prune(args) => {
                gpu::on!(args.options.device()?, device => prune::run(&device, args, out))
            }
            What::Rank(args) => {
                gpu::on!(args.options.device()?, device => rank::run(&device, args, out))
            }
        }
    });
    stop::status(code)
}
