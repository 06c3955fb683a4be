//! The reader in Python, made from `docs/format.md` alone, and the crate's reader say the same.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sepal::cpu::OnCpu;
use sepal::format::{File, Meta, Provenance};
use sepal::layer::{Activation, Conv2d, Layer, Projection, Residual, Window};
use sepal::models::cache::Budget;
use sepal::models::file::{Loaded, save};
use sepal::models::{data, fit::Fit, lenet::LENET, recipe};

use crate::corpus;
use crate::readers::{Random, TARGETS};

/// `None` where there is no Python: it takes nothing but a Rust toolchain to run the tests.
fn python(files: &[PathBuf]) -> Option<Output> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/format/reader.py");
    let output = Command::new("python3").env("PYTHONUTF8", "1").arg(script).args(files).output();
    if output.is_err() {
        println!("no python3: skipped");
    }
    output.ok()
}

/// What the script prints of a file, by the crate's reader.
fn described(path: &Path) -> String {
    let loaded = Loaded::open(path).unwrap();
    let (file, model) = (loaded.file().unwrap(), loaded.model());
    let net = model.net;
    let mut out = String::new();
    let flags = u32::from(file.checkpoint().is_some());
    let minor = file.minor();
    let bytes = file.blob().len();
    writeln!(out, "version 1.{minor}, flags {flags}, {bytes} bytes of weights").unwrap();
    let input = net.input;
    write!(out, "input {} {} {} mean", input.shape.c, input.shape.h, input.shape.w).unwrap();
    numbers(&mut out, &input.normalisation.mean);
    write!(out, " deviation").unwrap();
    numbers(&mut out, &input.normalisation.std);
    write!(out, "\nblocks").unwrap();
    net.blocks.iter().for_each(|end| write!(out, " {end}").unwrap());
    writeln!(out, " features {}", net.features).unwrap();
    for (index, layer) in net.layers.iter().enumerate() {
        write!(out, "layer {index} {}", layer.name()).unwrap();
        fields(layer).iter().for_each(|field| write!(out, " {field:?}").unwrap());
        out.push('\n');
        let names = ["weight", "bias", "mean", "variance"];
        for (name, stored) in names.into_iter().zip(model.weights.layer(&net, index)) {
            if stored.is_empty() {
                continue;
            }
            let mut wide = vec![0.0; stored.len()];
            assert!(stored.widen(&mut wide));
            let dtype = format!("{:?}", stored.dtype).to_lowercase();
            writeln!(out, "  {name} {dtype} {} sum {:?}", wide.len(), sum(&wide)).unwrap();
        }
    }
    let shape = net.output().unwrap();
    writeln!(out, "output {} {} {}", shape.c, shape.h, shape.w).unwrap();
    file.class_names().for_each(|name| writeln!(out, "class {name}").unwrap());
    if let Some(saved) = file.checkpoint() {
        let p = saved.progress();
        write!(out, "run {} {} {}", saved.version(), saved.identity(), saved.text()).unwrap();
        write!(out, " {} {} {}", p.stage, p.calibrated, p.epoch).unwrap();
        write!(out, " {} {} {:?}", p.step, p.updates, p.loss).unwrap();
        write!(out, " {} {} {}", p.anchors, p.skipped, p.correct).unwrap();
        numbers(&mut out, &[p.last.0, p.last.1]);
        match p.best {
            Some(best) => numbers(&mut out, &[best]),
            None => write!(out, " none").unwrap(),
        }
        writeln!(out, " {} {}", p.stale, u8::from(p.stopped)).unwrap();
        for o in saved.outcomes() {
            write!(out, "outcome {} {} {} {}", o.first, o.last, o.epochs, o.updates).unwrap();
            numbers(&mut out, &[o.loss, o.score, o.held_out]);
            out.push('\n');
        }
        for slot in 0..4 {
            let stored = saved.state(slot);
            let mut wide = vec![0.0; stored.len()];
            assert!(stored.widen(&mut wide));
            if !wide.is_empty() {
                writeln!(out, "state {slot} {} sum {:?}", wide.len(), sum(&wide)).unwrap();
            }
        }
    }
    if let Some(Provenance { version, recipe, seed, data }) = file.provenance() {
        writeln!(out, "provenance {version} {recipe} {seed} {data}").unwrap();
    }
    for (block, si) in file.separation() {
        writeln!(out, "separation {block} {:?}", f64::from(si)).unwrap();
    }
    file.notes().for_each(|note| writeln!(out, "note {note}").unwrap());
    out
}

fn numbers(out: &mut String, numbers: &[f32]) {
    numbers.iter().for_each(|&number| write!(out, " {:?}", f64::from(number)).unwrap());
}

fn sum(numbers: &[f32]) -> f64 {
    numbers.iter().fold(0.0, |sum, &number| sum + f64::from(number))
}

/// The fields of a layer in the order of the page.
fn fields(layer: &Layer) -> Vec<f64> {
    let two = |(a, b): (u8, u8)| [f64::from(a), f64::from(b)];
    let window = |w: Window| [two(w.kernel), two(w.stride), two(w.pad)].concat();
    match *layer {
        Layer::Conv2d(Conv2d { filters, kernel, stride, pad, groups, bias }) => {
            let places = [two(kernel), two(stride), two(pad)].concat();
            [&[filters.into()], &places[..], &[groups.into(), bias.into()]].concat()
        }
        Layer::BatchNorm(l) => vec![l.affine.into(), l.eps.into(), l.momentum.into()],
        Layer::Activation(Activation::LeakyRelu { slope }) => vec![slope.into()],
        Layer::MaxPool(l) => window(l.window),
        Layer::AvgPool(l) => window(l.window),
        Layer::Dense(l) => vec![l.units.into(), l.bias.into()],
        Layer::Dropout(l) => vec![l.rate.into()],
        Layer::AvgPoolTo(l) => vec![l.h.into(), l.w.into()],
        Layer::Project(l) => vec![l.dim.into(), l.seed as f64],
        Layer::Embedding(l) => vec![l.tokens.into(), l.dim.into()],
        Layer::KMaxPool(l) => vec![l.k.into()],
        Layer::SpaceToDepth(l) => vec![l.factor.into()],
        Layer::Quantise(l) => vec![l.scale.into(), l.zero.into()],
        Layer::Residual(Residual { back, project: None }) => vec![back.into(), 0.0],
        Layer::Residual(Residual { back, project: Some(Projection { channels, stride }) }) => {
            [&[back.into(), 1.0, channels.into()], &two(stride)[..]].concat()
        }
        Layer::Activation(Activation::Relu | Activation::Relu6 | Activation::Tanh)
        | Layer::GlobalAvgPool(_)
        | Layer::Flatten(_)
        | Layer::Standardise(_)
        | Layer::L2Normalise(_)
        | Layer::ChannelStd(_) => vec![],
        _ => panic!("{layer:?} is not on the page"),
    }
}

/// Words are equal, or numbers of the same bits that are written in two ways.
#[track_caller]
fn same(path: &Path, ours: &str, theirs: &str) {
    for (ours, theirs) in ours.lines().zip(theirs.lines()) {
        let number = |word: &str| word.parse::<f64>().ok().map(f64::to_bits);
        let equal =
            |(a, b): (&str, &str)| a == b || (number(a).is_some() && number(a) == number(b));
        let (a, b) = (ours.split(' '), theirs.split(' '));
        let words = a.clone().count() == b.clone().count();
        assert!(words && a.zip(b).all(equal), "{}:\n{ours}\n{theirs}", path.display());
    }
    assert_eq!(ours.lines().count(), theirs.lines().count(), "{}", path.display());
}

fn files(folder: &Path, ends: &str) -> Vec<PathBuf> {
    let all = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = all.filter(|path| path.to_string_lossy().ends_with(ends)).collect();
    files.sort();
    files
}

#[test]
fn golden_and_trained_models_and_checkpoints_are_read_alike() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut paths = files(&golden, ".sepal");
    assert!(!paths.is_empty());
    let folder = tempfile::tempdir().unwrap();
    let trained = folder.path().join("trained.sepal");
    let mut images = data::bundled().train.head(128).unwrap();
    let mut fit = Fit::new(LENET, 0).unwrap();
    let device = OnCpu::default();
    fit.run(&device, &recipe::forward_si(1, 1), &mut images, &Budget::default(), &mut ()).unwrap();
    save(&trained, &fit.model(), &Meta { classes: &["a", "b"], ..Meta::NONE }).unwrap();
    paths.push(trained);
    for target in ["model", "checkpoint"] {
        let seeds = files(&corpus(target), "");
        let seed =
            |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("seed-");
        paths.extend(seeds.into_iter().filter(seed));
    }
    for path in paths {
        let Some(output) = python(std::slice::from_ref(&path)) else { return };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        same(&path, &described(&path), &String::from_utf8(output.stdout).unwrap());
    }
}

/// Of files with right checksums and wrong contents, the two refuse the same ones.
#[test]
fn both_readers_refuse_the_same_files() {
    let folder = tempfile::tempdir().unwrap();
    let (mut paths, mut ours) = (vec![], vec![]);
    for target in TARGETS.iter().filter(|target| ["model", "checkpoint"].contains(&target.name)) {
        for (at, path) in files(&corpus(target.name), "").iter().enumerate() {
            for seed in 0..100 {
                let mut bytes = std::fs::read(path).unwrap();
                let mut random = Random::new(seed);
                (target.mutate)(&mut bytes, seed, &mut |piece| {
                    let at = random.below(piece.len().max(1));
                    piece.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << (seed % 8));
                });
                let path = folder.path().join(format!("{}-{at}-{seed}", target.name));
                std::fs::write(&path, &bytes).unwrap();
                let read = Loaded::open(&path).map(|_| ()).map_err(|error| error.to_string());
                // What is read must also open in place.
                assert!(read.is_err() || File::open(&bytes).is_ok());
                ours.push(read);
                paths.push(path);
            }
        }
    }
    let Some(output) = python(&paths) else { return };
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!errors.contains("Traceback"), "{errors}");
    let refused = |path: &PathBuf| {
        let start = format!("{}: refused: ", path.display());
        errors.lines().find_map(|line| line.strip_prefix(&start))
    };
    let both = paths.iter().zip(&ours);
    let split: Vec<_> = both
        .filter(|(path, ours)| refused(path).is_some() != ours.is_err())
        .map(|(path, ours)| format!("{}: {ours:?}, {:?}", path.display(), refused(path)))
        .collect();
    assert!(split.is_empty(), "{}", split.join("\n"));
    let count = ours.iter().filter(|read| read.is_err()).count();
    assert!(count > 0 && count < ours.len(), "{count} of {} refused: no test", ours.len());
}
