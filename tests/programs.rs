//! The programs, run as a person runs them: on good input, and on all kinds of bad input.
//!
//! `cargo test` builds them; `cargo test --test programs` needs `cargo build --examples` before.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use image::{GrayImage, RgbImage};
use sepal::infer::Inference;
use sepal::loss::softmax;
use sepal::models::architecture::Architecture;
use sepal::models::cache::Budget;
use sepal::models::data::{self, Dataset, Samples};
use sepal::models::features::Features;
use sepal::models::file::{self, Loaded};
use sepal::models::fit::{Event, Fit, Watch, Wish};
use sepal::models::learning::Learning;
use sepal::models::lenet::LENET;
use sepal::models::recipe;
use sepal::reference::OnReference;
use serde_json::Value;

#[cfg(all(feature = "onnx", feature = "safetensors"))]
#[path = "programs/convert.rs"]
mod convert;
#[path = "programs/reproduce.rs"]
mod reproduce;
#[path = "programs/steer.rs"]
mod steer;
#[path = "programs/tensorboard.rs"]
mod tensorboard;

const PROGRAMS: [&str; 9] = [
    "train",
    "evaluate",
    "predict",
    "inspect",
    "quantise",
    "finetune",
    "separation",
    "reproduce",
    "steer",
];

/// Where cargo puts a program: beside the folder of this test.
fn program(name: &str) -> PathBuf {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    if path.ends_with("deps") {
        path.pop();
    }
    path.push("examples");
    path.push(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    assert!(path.exists(), "{} is not built: cargo build --examples", path.display());
    path
}

/// How a program ended.
struct Ended {
    status: i32,
    out: String,
    err: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let out = String::from_utf8(output.stdout).unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert!(!err.contains("panicked"), "{err}");
        let status = output.status.code().unwrap_or_else(|| panic!("killed: {err}"));
        Self { status, out, err }
    }
}

fn run<S: AsRef<std::ffi::OsStr>>(name: &str, args: &[S]) -> Ended {
    Command::new(program(name)).args(args).output().unwrap().into()
}

impl Ended {
    /// Its output, where all went well and nothing was odd.
    #[track_caller]
    fn good(self) -> String {
        assert_eq!((self.status, &*self.err), (0, ""), "{}", self.out);
        self.out
    }

    /// Its output, where all went well, but a warning has all the words.
    #[track_caller]
    fn warned(self, words: &[&str]) -> String {
        assert_eq!(self.status, 0, "{}", self.err);
        has(&self.err, "warning: ", words);
        self.out
    }

    /// One line of error with all the words, and status 1.
    #[track_caller]
    fn refused(self, words: &[&str]) {
        assert_eq!(self.status, 1, "{}{}", self.out, self.err);
        has(&self.err, "error: ", words);
    }
}

/// The one line that begins like this has all the words.
#[track_caller]
fn has(text: &str, begin: &str, words: &[&str]) {
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with(begin)).collect();
    let [line] = lines[..] else { panic!("not one line `{begin}`: {text}") };
    for word in words {
        assert!(line.contains(word), "`{word}` is not in: {line}");
    }
}

/// Numbers of JSON are read with an error of some 1e-16.
#[track_caller]
fn close(found: Option<f64>, expected: Option<f64>) {
    let near = match (found, expected) {
        (Some(found), Some(expected)) => (found - expected).abs() < 1e-12,
        (found, expected) => found == expected,
    };
    assert!(near, "{found:?}, expected {expected:?}");
}

#[track_caller]
fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// An object's keys.
fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// Every key that is anywhere in a value; settings of layers are the library's own.
fn all_keys<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
    match value {
        Value::Object(object) => object.iter().for_each(|(key, value)| {
            found.insert(key);
            if key != "layer" {
                all_keys(value, found);
            }
        }),
        Value::Array(list) => list.iter().for_each(|value| all_keys(value, found)),
        _ => {}
    }
}

/// The help names each field of an output.
#[track_caller]
fn documented(name: &str, value: &Value) {
    let help = run(name, &["--help"]).good();
    let words: BTreeSet<&str> = help.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let mut found = BTreeSet::new();
    all_keys(value, &mut found);
    for key in found {
        assert!(words.contains(key), "{name} --help does not name `{key}`");
    }
}

/// A folder of one test, removed when it passes.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let name = format!("programs-{}-{name}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        self.path(name)
    }

    /// A data set as IDX files, the same images to train and to test; image i has label
    /// i % classes and a brightness of its own.
    fn idx(&self, name: &str, count: u32, side: u32, classes: u32) -> String {
        let pixel = |i: u32| (i / (side * side) * 7 + i % 13) as u8;
        let images: Vec<u8> = (0..count * side * side).map(pixel).collect();
        let labels: Vec<u8> = (0..count).map(|i| (i % classes) as u8).collect();
        for part in ["train", "t10k"] {
            self.idx_part(&format!("{name}/{part}"), side, &images, &labels);
        }
        self.path(name)
    }

    /// The first `count` bundled images of each part.
    fn fashion(&self, name: &str, count: u32) {
        let all = data::bundled();
        for (part, set) in [("train", all.train), ("t10k", all.test)] {
            let set = set.head(count).unwrap();
            let Samples::U8(images) = set.samples() else { panic!("bytes") };
            let labels: Vec<u8> = set.labels().iter().map(|&label| label as u8).collect();
            self.idx_part(&format!("{name}/{part}"), 28, images, &labels);
        }
    }

    fn idx_part(&self, part: &str, side: u32, images: &[u8], labels: &[u8]) {
        let header = |dims: &[u32]| {
            let mut bytes = vec![0, 0, 8, dims.len() as u8];
            dims.iter().for_each(|dim| bytes.extend(dim.to_be_bytes()));
            bytes
        };
        let count = labels.len() as u32;
        let images = [&header(&[count, side, side])[..], images].concat();
        self.file(&format!("{part}-images-idx3-ubyte"), &images);
        self.file(&format!("{part}-labels-idx1-ubyte"), [&header(&[count])[..], labels].concat());
    }

    /// An NPY array.
    fn npy(&self, name: &str, descr: &str, dims: &str, data: &[u8]) -> String {
        let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {dims}, }}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        self.file(name, bytes)
    }

    fn png(&self, name: &str, side: u32, pixels: &[u8]) -> String {
        let path = self.path(name);
        GrayImage::from_raw(side, side, pixels.to_vec()).unwrap().save(&path).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // A test that failed to clean up must not hide why it failed.
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// The options of a run that takes seconds.
const SHORT: [&str; 7] = ["--images", "256", "--epochs", "1", "--head-epochs", "1", "--no-control"];

/// A model trained by the program, once for all tests: its bytes, and what the program said.
fn trained() -> &'static (Vec<u8>, Vec<Value>) {
    static MODEL: OnceLock<(Vec<u8>, Vec<Value>)> = OnceLock::new();
    MODEL.get_or_init(|| {
        let folder = Folder::new("trained");
        let path = folder.path("model.sepal");
        let out = run("train", &[&SHORT[..], &["--json", "--save", &path]].concat()).good();
        assert!(!Path::new(&folder.path("model.sepal.checkpoint")).exists());
        (std::fs::read(path).unwrap(), out.lines().map(json).collect())
    })
}

/// The trained model in a folder.
fn model(folder: &Folder) -> String {
    folder.file("model.sepal", &trained().0)
}

/// A test image of the bundled set.
fn pixels(at: usize) -> Vec<u8> {
    let Samples::U8(all) = data::bundled().test.samples().clone() else { panic!("no bytes") };
    all[at * 784..(at + 1) * 784].to_vec()
}

/// The page has every part, needs no other file, and says what the run said.
#[test]
fn train_reports_in_a_page() {
    let folder = Folder::new("report");
    let to = folder.path("new/report");
    let args = [&SHORT[..], &["--json", "--patience", "3", "--report", &to]].concat();
    let out = run("train", &args).good();
    let page = std::fs::read_to_string(folder.0.join("new/report/report.html")).unwrap();
    let parts = [
        "What each block learnt",
        "Learning curves",
        "Memory and time",
        "Maps",
        "Confusion",
        "neighbours",
    ];
    for part in parts {
        assert!(page.contains(part), "no {part}");
    }
    let events: Vec<Value> = out.lines().map(json).collect();
    let said = events.iter().find(|event| event["event"] == "accuracy").unwrap();
    let head = format!("<td>{:.1}</td>", said["head"].as_f64().unwrap() * 100.0);
    assert!(page.contains(&head), "no {head}");
    // The loss and the shares of each of the three stages, SI, and a map of each block's features.
    assert_eq!(page.matches("<svg").count(), 4);
    // In both charts, and among the costs.
    assert_eq!(page.matches("layers 0..4 by separation").count(), 3);
    assert_eq!(page.matches("in memory as f32").count(), 2);
    assert_eq!(page.matches("SI of held-out samples").count(), 1);
    // Twelve test images, each with six neighbours.
    assert_eq!(page.matches("src=\"data:image/png;base64,").count(), 12 * 7);
    let elsewhere =
        page.matches("http").count() - page.matches("http://www.w3.org/2000/svg").count();
    assert_eq!(elsewhere, 0, "it asks for what is elsewhere");

    run("train", &[&SHORT[..], &["--report", &folder.file("taken", b"")]].concat())
        .refused(&["taken"]);
}

#[test]
fn evaluate_finds_the_accuracy_that_training_found() {
    let folder = Folder::new("evaluate");
    let path = model(&folder);
    let report = json(&run("evaluate", &["--json", &path]).good());
    let fields = [
        "accuracy",
        "balanced_accuracy",
        "classes",
        "confusion",
        "data",
        "model",
        "samples",
        "set",
    ];
    assert_eq!(keys(&report), fields);
    documented("evaluate", &report);
    let said = trained().1.iter().find(|event| event["event"] == "accuracy").unwrap();
    assert_eq!(report["accuracy"], said["head"]);
    assert_eq!((&report["samples"], &report["set"]), (&1000.into(), &"test".into()));

    let count = |row: usize, column: usize| report["confusion"][row][column].as_f64().unwrap();
    let class = |at: usize, field: &str| report["classes"][at][field].as_f64();
    let mut recalls = 0.0;
    for at in 0..10 {
        let samples: f64 = (0..10).map(|column| count(at, column)).sum();
        let predicted: f64 = (0..10).map(|row| count(row, at)).sum();
        assert_eq!(class(at, "samples"), Some(samples));
        close(class(at, "recall"), Some(count(at, at) / samples));
        let precision = (predicted > 0.0).then(|| count(at, at) / predicted);
        close(class(at, "precision"), precision);
        recalls += count(at, at) / samples;
    }
    let right: f64 = (0..10).map(|at| count(at, at)).sum();
    close(report["accuracy"].as_f64(), Some(right / 1000.0));
    close(report["balanced_accuracy"].as_f64(), Some(recalls / 10.0));

    let text = run("evaluate", &[&path, "--threads", "1"]).good();
    for word in ["1000 samples", "balanced accuracy", "Ankle boot", "recall", "precision"] {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
}

#[test]
fn evaluate_refuses_data_that_does_not_fit_and_warns_of_other_names() {
    let folder = Folder::new("fit");
    let path = model(&folder);
    let small = folder.idx("small", 12, 8, 10);
    run("evaluate", &[&path, "--data", &small]).refused(&[&small, "1x8x8", "1x28x28", &path]);
    let few = folder.idx("few", 12, 28, 3);
    run("evaluate", &[&path, "--data", &few]).refused(&[&few, "3 classes", "expected 10", &path]);
    // Ten classes, but digits.
    let digits = folder.idx("digits", 20, 28, 10);
    let ended = run("evaluate", &["--json", "--train", &path, "--data", &digits]);
    let report = json(&ended.warned(&[&digits, "`0`", "`T-shirt/top`"]));
    assert_eq!((&report["samples"], &report["set"]), (&20.into(), &"train".into()));
    let none = folder.path("none");
    run("evaluate", &[&path, "--data", &none]).refused(&[&none]);
    run("evaluate", &[&path, "--data", &path]).refused(&[&path, "a file", "folder"]);
}

#[test]
fn predict_names_what_the_library_predicts() {
    let folder = Folder::new("predict");
    let path = model(&folder);
    let images: Vec<String> =
        (0..3).map(|at| folder.png(&format!("{at}.png"), 28, &pixels(at))).collect();
    let loaded = Loaded::open(Path::new(&path)).unwrap();
    let mut set = data::bundled().test.head(3).unwrap();
    let logits = Features::new(&OnReference, &loaded.model(), &mut set, 15).unwrap();

    let args: Vec<&str> =
        ["--json", &path].into_iter().chain(images.iter().map(String::as_str)).collect();
    let out = run("predict", &args).good();
    let lines: Vec<Value> = out.lines().map(json).collect();
    assert_eq!(lines.len(), 3);
    let rows = logits.data().chunks(logits.dim());
    for (((line, image), class), row) in lines.iter().zip(&images).zip(logits.largest()).zip(rows) {
        let mut shares = row.to_vec();
        softmax(&mut shares);
        let share = line["classes"][0]["confidence"].as_f64().unwrap();
        assert!((share - f64::from(shares[usize::from(class)])).abs() < 1e-5, "{line}");
        assert_eq!((keys(line), &line["image"]), (vec!["classes", "image"], &image[..].into()));
        let best = &line["classes"][0];
        assert_eq!(best["index"], class);
        assert_eq!(best["name"], data::FASHION_MNIST[usize::from(class)]);
    }
    documented("predict", &lines[0]);

    let all = json(&run("predict", &["--json", "--top", "99", &path, &images[0]]).good());
    let all: Vec<f64> = all["classes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|class| class["confidence"].as_f64().unwrap())
        .collect();
    assert_eq!(all.len(), 10);
    assert!(all.is_sorted_by(|a, b| a >= b) && (all.iter().sum::<f64>() - 1.0).abs() < 1e-5);

    // The negative of an image, inverted, is the image; so are three equal channels.
    let text = |image: &str, more: &[&str]| {
        let args = [&[&path, "--top", "2", image], more].concat();
        run("predict", &args).good().split_once(": ").unwrap().1.to_owned()
    };
    let negative: Vec<u8> = pixels(0).iter().map(|pixel| 255 - pixel).collect();
    let negative = folder.png("negative.png", 28, &negative);
    assert_eq!(text(&negative, &["--invert"]), text(&images[0], &[]));
    assert!(text(&images[0], &[]).contains(" %, "), "two classes");
    let color = folder.path("color.png");
    let rgb = pixels(0).iter().flat_map(|&pixel| [pixel; 3]).collect();
    RgbImage::from_raw(28, 28, rgb).unwrap().save(&color).unwrap();
    assert_eq!(text(&color, &[]), text(&images[0], &[]));
    let jpeg = folder.path("large.jpg");
    GrayImage::from_pixel(56, 40, image::Luma([9])).save(&jpeg).unwrap();
    text(&jpeg, &["--resize"]);
}

/// Without a driver `--cuda` says what is missing; with one, here the stand-in for it, the GPU predicts
/// what the CPU does.
#[cfg(feature = "cuda")]
#[test]
fn a_gpu_is_asked_for_by_name() {
    let folder = Folder::new("gpu");
    let (path, image) = (model(&folder), folder.png("0.png", 28, &pixels(0)));
    if sepal::cuda::OnCuda::open(0).is_err() {
        run("predict", &["--cuda", &path, &image]).refused(&["--cuda=0", "driver"]);
        run("evaluate", &["--cuda=1", &path]).refused(&["--cuda=1", "driver"]);
        run("train", &["--cuda"]).refused(&["--cuda=0", "driver"]);
    }
    let executable = std::env::current_exe().unwrap();
    let library = executable.with_file_name("libsepal_stand_in.so");
    std::os::unix::fs::symlink(&library, folder.path("libcuda.so")).unwrap();
    let predict = |options: &[&str]| -> Value {
        let mut command = Command::new(program("predict"));
        command.env("LD_LIBRARY_PATH", folder.path("")).args(["--json", "--top", "10"]);
        let ended = command.args(options).args([&path, &image]).output().unwrap();
        json(&Ended::from(ended).good())
    };
    let (cpu, gpu) = (predict(&[]), predict(&["--cuda"]));
    for (cpu, gpu) in
        cpu["classes"].as_array().unwrap().iter().zip(gpu["classes"].as_array().unwrap())
    {
        assert_eq!(cpu["index"], gpu["index"]);
        let [cpu, gpu] = [cpu, gpu].map(|class| class["confidence"].as_f64().unwrap());
        assert!((cpu - gpu).abs() < 1e-4, "{cpu}, on the GPU {gpu}");
    }
}

#[test]
fn predict_refuses_what_is_no_image_of_the_size() {
    let folder = Folder::new("size");
    let path = model(&folder);
    let small = folder.png("small.png", 20, &[0; 400]);
    run("predict", &[&path, &small]).refused(&[&small, "20 x 20", "28 x 28", "--resize"]);
    let cut = std::fs::read(&small).unwrap();
    let cut = folder.file("cut.png", &cut[..cut.len() / 2]);
    run("predict", &[&path, &cut]).refused(&[&cut, "PNG or JPEG"]);
    let foreign = folder.file("text.png", "no image at all");
    run("predict", &[&path, &foreign]).refused(&[&foreign, "PNG or JPEG"]);
    let none = folder.path("none.png");
    run("predict", &[&path, &none]).refused(&[&none]);
    let empty = folder.file("empty.png", "");
    run("predict", &[&path, &empty]).refused(&[&empty, "PNG or JPEG"]);
    // Those before it are there.
    let good = folder.png("good.png", 28, &pixels(0));
    let ended = run("predict", &[&path, &good, &small]);
    assert!(ended.out.starts_with(&good), "{}", ended.out);
    ended.refused(&[&small]);
}

/// Stops a run in its second stage.
struct Stopping(usize);

impl Watch for Stopping {
    fn event(&mut self, event: &Event<'_>) -> Wish {
        match event {
            Event::Step(_) => {
                self.0 += 1;
                if self.0 == 3 { Wish::Stop } else { Wish::Go }
            }
            _ => Wish::Go,
        }
    }
}

#[test]
fn inspect_shows_a_model() {
    let folder = Folder::new("inspect");
    let path = model(&folder);
    let report = json(&run("inspect", &["--json", &path]).good());
    let fields = [
        "bytes",
        "checkpoint",
        "classes",
        "file",
        "flash",
        "input",
        "layers",
        "notes",
        "parameters",
        "provenance",
        "ram",
        "separation",
        "version",
    ];
    assert_eq!(keys(&report), fields);
    documented("inspect", &report);
    assert_eq!(report["parameters"], LENET.params(15).unwrap());
    assert_eq!(report["bytes"], trained().0.len());
    assert_eq!(report["layers"].as_array().unwrap().len(), 15);
    let convolution = &report["layers"][4];
    assert_eq!(convolution["name"], "conv2d");
    assert_eq!((&convolution["block"], &convolution["dtype"]), (&2.into(), &"f32".into()));
    assert_eq!(convolution["output"], serde_json::json!([16, 10, 10]));
    assert_eq!((&convolution["parameters"], &convolution["bytes"]), (&2400.into(), &9600.into()));
    assert_eq!(report["classes"][9], "Ankle boot");
    assert_eq!(report["provenance"]["seed"], 0);
    assert_eq!(report["separation"].as_array().unwrap().len(), 3);
    assert!(report["checkpoint"].is_null());

    let memory = report["ram"]["memory"].as_array().unwrap();
    assert_eq!(memory.len(), 5, "two blocks, the classifier, the whole net twice");
    let whole = &memory[3];
    assert_eq!(whole["infer"], Inference::reference(LENET, 1).unwrap().bytes());
    let number = |need: &Value, name: &str| need[name].as_u64().unwrap();
    // Small cores hold no batch, and nothing that is pooled away.
    let small = report["ram"]["small"].as_array().unwrap();
    assert_eq!(small.len(), 4, "the whole net, two blocks, the last");
    assert_eq!(small[0]["infer"], Inference::micro(LENET, 1, false).unwrap().bytes());
    for (small, batch) in small[1..3].iter().zip(memory) {
        for rule in ["sgd", "momentum", "adam"] {
            assert!(number(small, rule) * 3 < number(batch, rule), "{small} {batch}");
        }
    }
    let args = [&path, "--json", "--flash", "1000"];
    let flash = &json(&run("inspect", &args).good())["flash"];
    assert_eq!(*flash, serde_json::json!({"budget": 1000, "fits": false}));
    let text = run("inspect", &[&path, "--flash", "1000"]).good();
    assert!(text.contains(&format!("{} bytes too large", trained().0.len() - 1000)), "{text}");
    for need in memory {
        assert!(number(need, "infer") <= number(whole, "infer"));
        // Momentum keeps one number for each parameter that is trained, Adam two.
        let state = number(need, "momentum") - number(need, "sgd");
        assert_eq!(number(need, "adam") - number(need, "momentum"), state);
        assert!(state > 0, "{need}");
    }

    let budget = number(&memory[1], "momentum");
    let args = ["--json", &path, "--ram", &budget.to_string()];
    let report = json(&run("inspect", &args).good());
    documented("inspect", &report);
    assert_eq!(report["ram"]["memory"][1]["fits"], serde_json::json!(["infer", "sgd", "momentum"]));
    let text = run("inspect", &[&path, "--ram", &budget.to_string()]).good();
    for word in ["62528 parameters", "Ankle boot", "conv2d 5x5", "block 2 by SI", "seed 0"] {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
    assert!(text.contains(&format!("*{budget}")) && text.contains(&format!("* fits in {budget}")));
}

#[test]
fn finetune_learns_a_user() {
    let folder = Folder::new("finetune");
    let path = model(&folder);
    let few = ["--updates", "3", "--head-updates", "40"];
    let args = [&[&path[..], "--shown", "4", "--tested", "50", "--seeds", "2"], &few[..]].concat();
    let text = run("finetune", &[&args[..], &["--json"]].concat()).good();
    let lines: Vec<Value> = text.lines().map(json).collect();
    assert_eq!(lines.len(), 2);
    for line in &lines {
        documented("finetune", line);
        // A fifth of four of each of ten classes.
        let held_out = line["held_out"].as_u64().unwrap();
        assert!((1..=10).contains(&held_out), "{line}");
        let right = |name: &str| line[name].as_f64().unwrap();
        assert!(right("head") > right("before") && right("tuned") > right("before"), "{line}");
    }
    assert_ne!(lines[0], lines[1]);
    let again = run("finetune", &[&args[..], &["--json"]].concat()).good();
    assert_eq!(text, again);
    let table = run("finetune", &args).good();
    assert!(table.contains("block by separation, last layer"), "{table}");
    run("finetune", &[&path, "--block", "9"]).refused(&["block 9"]);
    run("finetune", &[&path, "--shown", "1"]).refused(&["10 samples", "16 are needed"]);
    // A block of bytes, which would not run with what is learnt in numbers.
    let bytes = folder.path("bytes.sepal");
    run("quantise", &[&path, &bytes, "--test", "10", "--samples", "50"]).good();
    run("finetune", &[&bytes]).refused(&["computes in f32"]);
}

/// The saved model is right as often as the program said, on the samples that it tested.
#[test]
fn finetune_saves_what_the_user_keeps() {
    let folder = Folder::new("tuned");
    let path = model(&folder);
    let (saved, cases) = (folder.path("tuned.sepal"), folder.path("cases"));
    let args = [&path[..], "--tested", "60", "--seeds", "1", "--save", &saved, "--cases", &cases];
    let net = Loaded::open(path.as_ref()).unwrap();
    // Most of the held-out samples that a block gains or loses are gained by one user, lost by the other.
    for (shift, kept) in [("invert", true), ("rotate", false)] {
        let more = ["--shown", "40", "--shift", shift];
        let text = run("finetune", &[&args[..], &more, &["--json"]].concat()).good();
        let said = json(&text);
        assert_eq!(said["kept"], kept, "{said}");
        let user = std::fs::read(format!("{cases}/0.user")).unwrap();
        let word = |at: usize| u32::from_le_bytes(user[at * 4..][..4].try_into().unwrap()) as usize;
        let (shown, tested) = (word(2), word(3));
        let labels = 19 * 4 + shown * 2;
        let samples = labels + tested * 2 + shown * 784;
        let label =
            |at: usize| u16::from_le_bytes(user[labels + at * 2..][..2].try_into().unwrap());
        let labels: Vec<u16> = (0..tested).map(label).collect();
        let names = (0..10).map(|name| name.to_string()).collect();
        let pixels = Samples::U8(user[samples..].to_vec());
        let mut set = Dataset::new(net.model().net.input.shape, pixels, labels, names).unwrap();
        let tuned = Loaded::open(saved.as_ref()).unwrap();
        let logits = Features::new(&OnReference, &tuned.model(), &mut set, 15).unwrap();
        let expected = if kept { &said["tuned"] } else { &said["head"] };
        close(Some(logits.accuracy() * 100.0), expected.as_f64());
        // The tuned blocks are others, all else is as it was, names and provenance included.
        let [before, after] = [&net, &tuned].map(Loaded::model);
        let layer = |model: sepal::net::Model<'_>, at| {
            model.weights.layer(&model.net, at).map(|stored| stored.bytes.to_vec())
        };
        let changed = (0..15).filter(|&at| layer(before, at) != layer(after, at));
        assert!(changed.eq(if kept { vec![4, 14] } else { vec![14] }));
        let [before, after] = [&net, &tuned].map(|loaded| loaded.file().unwrap());
        assert_eq!(after.provenance(), before.provenance());
        assert!(after.class_names().eq(before.class_names()));
        let blocks = if kept { "block 1, block 4" } else { "block 4" };
        assert!(after.notes().any(|note| note == format!("tuned for a user, seed 0: {blocks}")));
    }
    run("finetune", &[&path, "--save", &saved]).refused(&["--seeds 5", "expected 1"]);
    let nowhere = folder.path("none/tuned.sepal");
    run("finetune", &[&path, "--seeds", "1", "--save", &nowhere]).refused(&["none/tuned.sepal"]);
}

/// A table of recordings of three persons who wave and shake, each in a way of their own.
fn recordings() -> String {
    let mut table = "label,person,recording,t,x,y,z\n".to_owned();
    for (p, person) in ["ann", "bob", "cid"].iter().enumerate() {
        for recording in 0..24 {
            let (label, speed) = if recording % 2 == 0 { ("wave", 0.15) } else { ("shake", 0.9) };
            for t in 0..60 {
                let phase = f64::from(recording) + speed * f64::from(t);
                let (x, y) = (phase.sin() * (1.0 + 0.2 * p as f64), 0.1 * phase.cos());
                table += &format!("{label},{person},{recording},{t},{x:.2},{y:.2},1\n");
            }
        }
    }
    table
}

#[test]
fn a_person_is_left_out_and_met_later() {
    let folder = Folder::new("persons");
    folder.file("magic_wand.csv", recordings());
    let (data, path) = (folder.path(""), folder.path("model.sepal"));
    let set = ["--data", &data, "--leave-out", "bob"];
    let few = ["--model", "gesture", "--batch", "16", "--epochs", "4", "--head-epochs", "20"];
    let save = ["--save", &path[..], "--no-control", "--json"];
    let text = run("train", &[&set[..], &few, &save].concat()).good();
    let done = json(text.lines().last().unwrap());
    assert_eq!((&done["train"], &done["test"]), (&48.into(), &24.into()));
    let accuracy = json(&run("evaluate", &[&[&path[..], "--json"], &set[..]].concat()).good());
    assert_eq!((&accuracy["samples"], accuracy["accuracy"].as_f64()), (&24.into(), Some(1.0)));

    // Four shown of each class are trained on: all of them in each update.
    let own = ["--shown", "5", "--batch", "8", "--updates", "3", "--head-updates", "60"];
    let shown = |shift: &str| {
        let cases = folder.path(shift);
        let args = [&path[..], "--shift", shift, "--cases", &cases, "--seeds", "2", "--json"];
        let text = run("finetune", &[&args[..], &own, &set].concat()).good();
        let lines: Vec<Value> = text.lines().map(json).collect();
        let users = [0, 1].map(|seed| std::fs::read(format!("{cases}/{seed}.user")).unwrap());
        (lines, users)
    };
    let ((lines, turned), (_, plain)) = (shown("invert"), shown("none"));
    for line in &lines {
        documented("finetune", line);
        assert_eq!((&line["tested"], &line["held_out"]), (&14.into(), &2.into()));
        assert!(line["head"].as_f64().unwrap() > line["before"].as_f64().unwrap(), "{line}");
    }
    // 19 words and 24 labels, then the samples: each channel points the other way.
    let at = 19 * 4 + 24 * 2;
    for (user, plain) in turned.iter().zip(&plain) {
        assert_eq!(user.len(), at + 24 * 3 * 128);
        assert!(user[at..].iter().zip(&plain[at..]).all(|(a, b)| a ^ b == 255));
    }
    // The first two axes change places, one of them around the byte of rest.
    let (_, turned) = shown("rotate");
    for (user, plain) in turned[0][at..].chunks(3 * 128).zip(plain[0][at..].chunks(3 * 128)) {
        for t in 0..128 {
            assert_eq!(u32::from(user[t]) + u32::from(plain[128 + t]), 256);
            assert_eq!((user[128 + t], user[256 + t]), (plain[t], plain[256 + t]));
        }
    }
    // Whom the others are like is known before.
    let table = run("finetune", &[&[&path[..]], &own[..], &set].concat()).good();
    let before = table.lines().find(|line| line.starts_with("before")).unwrap();
    assert!(before.contains("100.0"), "{table}");

    let other = ["--data", &data[..], "--leave-out", "ann"];
    run("finetune", &[&[&path[..]], &own[..], &other].concat()).warned(&["all but `ann`"]);
    let nobody = ["--data", &data[..], "--leave-out", "eve"];
    run("train", &[&nobody[..], &few].concat()).refused(&["`eve`", "ann, bob, cid"]);
    run("finetune", &[&[&path[..], "--shown", "12"], &set[..]].concat()).refused(&["all samples"]);
    run("finetune", &[&path]).refused(&["the bundled images", "1x3x1x128"]);
}

#[test]
fn quantise_writes_a_net_of_bytes_and_says_what_it_costs() {
    let folder = Folder::new("quantise");
    let (path, out) = (model(&folder), folder.path("out.sepal"));
    let short = ["--samples", "100", "--test", "200"];
    let made = |args: &[&str]| {
        let args = [&[&path[..], &out, "--json"], &short[..], args].concat();
        json(&run("quantise", &args).good())
    };
    let report = made(&[]);
    let fields =
        ["forms", "layers", "model", "out", "quantile", "samples", "steps", "tested", "to"];
    assert_eq!(keys(&report), fields);
    documented("quantise", &report);
    let forms = |report: &Value| -> Vec<(String, usize, Option<u64>)> {
        let forms = report["forms"].as_array().unwrap().iter();
        let form = |form: &Value| {
            let name = form["name"].as_str().unwrap().to_owned();
            (name, form["ram"].as_u64().unwrap() as usize, form["bytes"].as_u64())
        };
        forms.map(form).collect()
    };
    let expected: Vec<&str> = vec!["as trained", "folded", "int8, computed in f32", "int8"];
    let found = forms(&report);
    assert_eq!(found.iter().map(|form| &form.0[..]).collect::<Vec<_>>(), expected);
    let written = Loaded::open(Path::new(&out)).unwrap();
    let wide = Inference::micro(LENET, 1, false).unwrap().bytes();
    let narrow = Inference::micro(written.model().net, 1, true).unwrap().bytes();
    assert_eq!((found[0].1, found[3].1), (wide, narrow));
    assert_eq!(found[0].2, Some(trained().0.len() as u64));
    assert_eq!(found[3].2, Some(written.bytes().len() as u64));
    assert!(narrow * 3 < wide && written.bytes().len() * 3 < trained().0.len());
    let accuracy = |form: usize| report["forms"][form]["accuracy"].as_f64().unwrap();
    assert!((accuracy(0) - accuracy(3)).abs() <= 0.02, "{report}");
    assert_eq!(report["steps"].as_array().unwrap().len(), 5);
    assert!(report["steps"][0]["low"].is_null() && report["steps"][1]["high"].is_f64());
    // What the trained file says is there, and how this one was made.
    let file = written.file().unwrap();
    assert_eq!(file.class_name(9), Some("Ankle boot"));
    assert_eq!(file.provenance().unwrap().seed, 0);
    assert!(file.notes().last().unwrap().contains("int8, measured on 100"));
    // The other programs read it.
    run("evaluate", &[&out]).good();
    run("inspect", &[&out]).good();

    let report = made(&["--floats", "2,3,4"]);
    assert_eq!(report["steps"].as_array().unwrap().len(), 2);
    for (to, most) in [("f16", 2), ("f32", 1)] {
        let report = made(&["--to", to]);
        assert!(report["steps"].as_array().unwrap().is_empty());
        let found = forms(&report);
        assert_eq!(found[2].0, to);
        assert!(found[2].2.unwrap() * most < trained().0.len() as u64 + 4096, "{found:?}");
    }
    let text = run("quantise", &[&[&path[..], &out], &short[..]].concat()).good();
    for word in ["accuracy %", "raw bytes", "int8, computed in f32", "200 test samples"] {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
}

#[test]
fn quantise_refuses_what_makes_no_net_of_bytes() {
    let folder = Folder::new("unquantised");
    let (path, out) = (model(&folder), folder.path("out.sepal"));
    let small = folder.idx("small", 20, 8, 2);
    let cases: [(&[&str], &[&str]); 6] = [
        (&["--floats", "1,5"], &["block 5", "one of 5"]),
        (&["--quantile", "0.4"], &["quantile 0.4"]),
        (&["--quantile", "nan"], &["quantile NaN"]),
        (&["--samples", "0"], &["--samples 0", "2000"]),
        (&["--samples", "2001"], &["--samples 2001", "2000"]),
        (&["--data", &small], &["1x8x8", "1x28x28"]),
    ];
    for (args, words) in cases {
        run("quantise", &[&[&path[..], &out], args].concat()).refused(words);
        assert!(!Path::new(&out).exists(), "{args:?}");
    }
    run("quantise", &[&path, &format!("{path}/none")]).refused(&["creating"]);
    run("quantise", &[&path[..], &out, "--test", "10", "--samples", "10"]).good();
    run("quantise", &[&out, &folder.path("again.sepal")]).refused(&["layer 0", "not quantised"]);
}

#[test]
fn inspect_shows_how_far_a_run_is() {
    let folder = Folder::new("checkpoint");
    let mut images = data::bundled().train.head(256).unwrap();
    let mut fit = Fit::new(LENET, 0).unwrap();
    let strategy = recipe::forward_si(1, 1);
    fit.run(&OnReference, &strategy, &mut images, &Budget::default(), &mut Stopping(0))
        .unwrap_err();
    let path = folder.path("run.checkpoint");
    file::save_checkpoint(Path::new(&path), LENET, &fit.snapshot(), 0xbeef, "by hand").unwrap();

    let report = json(&run("inspect", &["--json", &path]).good());
    documented("inspect", &report);
    let run_so_far = &report["checkpoint"];
    assert_eq!(run_so_far["run"], "by hand");
    assert_eq!((&run_so_far["stage"], &run_so_far["updates"]), (&1.into(), &1.into()));
    assert_eq!(run_so_far["done"][0]["updates"], 2);
    let text = run("inspect", &[&path]).good();
    for word in ["000000000000beef", "by hand", "stage 0, layers 0..4: done", "stage 1: 1 updates"]
    {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
}

#[test]
fn bad_model_files_are_refused_by_each_program() {
    let folder = Folder::new("models");
    let good = &trained().0;
    let out = folder.path("out.sepal");
    let image = folder.png("image.png", 28, &pixels(0));
    let changed = |name: &str, at: usize, byte: u8| {
        let mut bytes = good.clone();
        assert_ne!(bytes[at], byte);
        bytes[at] = byte;
        folder.file(name, bytes)
    };
    let cut = folder.file("cut.sepal", &good[..good.len() - 1000]);
    let (half, end) = (good.len() / 2, good.len() - 100);
    let (whole, short) = (format!("{:#x}", good.len()), format!("{:#x}", good.len() - 1000));
    let cases: [(String, &[&str]); 10] = [
        (folder.path("none.sepal"), &["opening"]),
        (folder.path(""), &["reading"]),
        (folder.file("empty.sepal", ""), &["file length", "0x0", "0x20"]),
        (cut, &["file length", &whole, &short]),
        (folder.file("long.sepal", [&good[..], b"x"].concat()), &["file length", &whole]),
        (changed("middle.sepal", half, !good[half]), &["weights checksum"]),
        (changed("end.sepal", end, !good[end]), &["weights checksum"]),
        (changed("manifest.sepal", 40, !good[40]), &["manifest checksum"]),
        (changed("magic.sepal", 1, b'Z'), &["magic"]),
        (changed("future.sepal", 8, 9), &["major version", "0x9", "0x1"]),
    ];
    for (path, words) in cases.iter().chain([&(image.clone(), &["magic"][..])]) {
        let words = [&[&path[..]], *words].concat();
        run("evaluate", &[path]).refused(&words);
        run("inspect", &[path]).refused(&words);
        run("quantise", &[path, &out]).refused(&words);
        run("predict", &[path, &image]).refused(&words);
    }
}

#[test]
fn a_checkpoint_that_is_none_stops_a_resumed_run() {
    let folder = Folder::new("resume");
    let save = model(&folder);
    let resume = [&SHORT[..], &["--resume", "--save", &save]].concat();
    let cut = folder.file("model.sepal.checkpoint", &trained().0[..500]);
    run("train", &resume).refused(&[&cut, "file length", "0x1f4"]);
    let finished = folder.file("model.sepal.checkpoint", &trained().0);
    run("train", &resume).refused(&[&finished, "a finished model"]);
    assert_eq!(&std::fs::read(&save).unwrap(), &trained().0);
}

/// Six samples of two features: SI by hand.
const TABLE: &str = "a,b,kind\n0,0,x\n0.1,0,x\n5,5,y\n5.2,5,y\n0.15,0,y\n9,9,z\n";

#[test]
fn separation_is_what_a_hand_finds() {
    let folder = Folder::new("separation");
    let table = folder.file("table.csv", TABLE);
    // Row 5 lies among the x: it and row 2 are each other's nearest. Row 6 is alone.
    let args = ["--json", "--k", "2", "--triplets", "1000", &table];
    let report = json(&run("separation", &args).warned(&[&table, "`z`", "one sample"]));
    assert_eq!(keys(&report), ["classes", "features", "file", "measures", "samples", "unpaired"]);
    documented("separation", &report);
    let measure = |report: &Value, name: &str| {
        let all = report["measures"].as_array().unwrap();
        all.iter().find(|measure| measure["name"] == name).unwrap().clone()
    };
    let value = |name: &str| measure(&report, name)["value"].as_f64();
    assert_eq!(report["unpaired"], 1);
    close(value("SI"), Some(3.0 / 6.0));
    close(value("high-order SI"), Some(0.0));
    close(value("soft SI"), Some(4.0 / 12.0));
    close(value("anti SI"), Some(2.0 / 6.0));
    // Runs: 1, -1, 1, 1, -2, -2.
    close(value("score"), Some(-2.0 / 6.0));
    close(value("centre-based SI"), Some(5.0 / 6.0));
    let triplets = measure(&report, "triplet SI");
    assert_eq!((&triplets["anchors"], &triplets["skipped"]), (&1000.into(), &0.into()));
    for (class, si) in [1.0 / 2.0, 2.0 / 3.0, 0.0].into_iter().enumerate() {
        close(report["classes"][class]["si"].as_f64(), Some(si));
    }

    let test = folder.file("test.csv", "a,b,kind\n0,0.01,x\n5,5.1,z\n");
    let args = ["--json", "--k", "2", "--label-column", "kind", &table, "--test", &test];
    let report = json(&run("separation", &args).warned(&["`z`"]));
    assert_eq!(measure(&report, "cross-SI")["value"], 0.5);
    assert_eq!(measure(&report, "cross-SI")["anchors"], 2);
    let text = run("separation", &[&table, "--label-column", "2"]).warned(&["`z`"]);
    for word in ["6 samples of 2 features", "the nearest sample has their label", "0.5000"] {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
    // Fewer samples, the same ones for the same seed.
    let args = ["--samples", "4", "--k", "1", "--seed", "3", &table];
    let [first, again] = [(); 2].map(|()| run("separation", &args));
    assert!(first.err.contains("4 of 6"), "{}", first.err);
    assert_eq!((first.status, first.out), (0, again.out));
}

#[test]
fn separation_agrees_with_the_golden_file() {
    let golden = |name: &str| format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    let report = json(&run("separation", &["--json", &golden("si_digits.csv")]).warned(&["`10`"]));
    let measures = report["measures"].as_array().unwrap();
    let classes = report["classes"].as_array().unwrap();
    let mut compared = 0;
    for line in std::fs::read_to_string(golden("si_digits_expected.csv")).unwrap().lines() {
        let [name, count, of] = line.split(',').collect::<Vec<_>>()[..] else { continue };
        let find = |list: &[Value], name: &str, field: &str| {
            list.iter().find(|item| item["name"] == name).and_then(|item| item[field].as_f64())
        };
        let measure = |name: &str| find(measures, name, "value");
        let found = match name {
            "si" => measure("SI"),
            "high order 3" => measure("high-order SI"),
            "soft 3" => measure("soft SI"),
            "anti 3" => measure("anti SI"),
            "centre" => measure("centre-based SI"),
            _ => match name.strip_prefix("class ") {
                Some(class) => find(classes, class, "si"),
                None => continue,
            },
        };
        let expected = count.parse::<f64>().unwrap() / of.parse::<f64>().unwrap();
        close(found, Some(expected));
        compared += 1;
    }
    assert_eq!(compared, 5 + 11);
}

#[test]
fn separation_reads_arrays_folders_and_numbers_to_predict() {
    let folder = Folder::new("arrays");
    let floats = |x: &[f32]| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let features = folder.npy("x.npy", "<f4", "(4, 2)", &floats(&[0., 0., 0., 1., 8., 8., 8., 9.]));
    let labels = folder.npy("y.npy", "|u1", "(4,)", &[0, 0, 1, 1]);
    let args = ["--json", "--k", "1", &features, "--labels", &labels];
    let more = ["--test", &features, "--test-labels", &labels];
    let report = json(&run("separation", &[&args[..], &more].concat()).good());
    assert_eq!(report["measures"][0]["value"], 1.0);
    assert_eq!(report["measures"].as_array().unwrap().len(), 9);

    let targets = folder.npy("t.npy", "<f4", "(4,)", &floats(&[0., 1., 5., 6.]));
    let args = ["--json", "--regression", &features, "--labels", &targets];
    let report = json(&run("separation", &args).good());
    documented("separation", &report);
    // The nearest sample has the nearest number, for each.
    assert_eq!(report["measures"][0]["value"], 1.0);
    assert_eq!(report["measures"][1]["value"], 1.0);
    let table = folder.file("t.csv", "x,y\n0,0\n1,4\n2,1\n3,5\n");
    let args = ["--json", "--regression", &table];
    let report = json(&run("separation", &args).good());
    // Nearest by x: 1, 0, 1, 2 (the lower index of two). |y - y*| = 4, 4, 3, 4; nearest and
    // farthest numbers are 1 and 5, 1 and 4, 1 and 4, 1 and 5 away.
    let linear = (1.0 / 4.0 + 0.0 + 1.0 / 3.0 + 1.0 / 4.0) / 4.0;
    let found = report["measures"][0]["value"].as_f64().unwrap();
    assert!((found - linear).abs() < 1e-6, "{found}, computed in f32; expected {linear}");

    let images = folder.idx("images", 12, 8, 3);
    let report = json(&run("separation", &["--json", &images]).good());
    assert_eq!((&report["samples"], &report["features"]), (&12.into(), &64.into()));
    // The test images are the training images.
    assert_eq!(report["measures"][7]["name"], "cross-SI");
    assert_eq!(report["measures"][7]["value"], 1.0);
    run("separation", &["--regression", &images]).refused(&[&images, "--regression"]);
}

#[test]
fn separation_refuses_features_that_say_nothing() {
    let folder = Folder::new("features");
    let table = folder.file("table.csv", TABLE);
    let bad = |name: &str, text: &str, words: &[&str]| {
        let path = folder.file(name, text);
        run("separation", &[&path]).refused(&[&[&path[..]], words].concat());
    };
    bad("nan.csv", "a,b,l\n1,2,x\n1,nan,y\n", &["row 3", "`b`", "`nan`", "finite"]);
    bad("inf.csv", "1,2,x\n1,inf,y\n", &["row 2", "column 1", "`inf`", "finite"]);
    bad("word.csv", "1,2,x\n1,no,y\n", &["row 2", "`no`"]);
    bad("empty.csv", "", &["no rows"]);
    bad("header.csv", "a,b,l\n", &["no rows"]);
    bad("ragged.csv", "1,2,x\n1,y\n", &["2"]);
    bad("one.csv", "1,2,x\n", &["`x`", "all 1", "2 classes"]);
    bad("class.csv", "1,2,x\n3,4,x\n5,6,x\n", &["`x`", "all 3", "2 classes"]);
    bad("alone.csv", "1,2,x\n3,4,y\n5,6,z\n", &["3 classes of 1 sample"]);
    let image = folder.png("image.png", 4, &[0; 16]);
    run("separation", &[&image]).refused(&[&image]);
    let none = folder.path("none.csv");
    run("separation", &[&none]).refused(&[&none]);

    let other = folder.file("other.csv", "a,b,kind\n0,0,x\n1,1,w\n");
    run("separation", &[&table, "--test", &other]).refused(&[&other, "`w`"]);
    let wide = folder.file("wide.csv", "a,b,c,kind\n0,0,0,x\n");
    run("separation", &[&table, "--test", &wide]).refused(&[&wide, "3 features", "2", &table]);
    run("separation", &[&table, "--label-column", "none"]).refused(&[&table, "`none`", "`kind`"]);
    run("separation", &[&table, "--label-column", "7"]).refused(&[&table, "7", "0 to 2"]);
    run("separation", &[&table, "--k", "6"]).refused(&[&table, "6", "1 to 5"]);

    let floats = |x: &[f32]| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let nan = folder.npy("x.npy", "<f4", "(2, 1)", &floats(&[0.0, f32::NAN]));
    let labels = folder.npy("y.npy", "<i4", "(2,)", &[0, 0, 0, 0, 1, 0, 0, 0]);
    run("separation", &[&nan, "--labels", &labels]).refused(&[&nan, "sample 1", "NaN", "finite"]);
    let features = folder.npy("z.npy", "<f4", "(2, 1)", &floats(&[0.0, 1.0]));
    let negative = folder.npy("n.npy", "<i4", "(2,)", &[0, 0, 0, 0, 255, 255, 255, 255]);
    let args = [&features, "--labels", &negative];
    run("separation", &args).refused(&[&negative, "sample 1", "-1", "65535"]);
    let three = folder.npy("three.npy", "|u1", "(3,)", &[0, 1, 1]);
    run("separation", &[&features, "--labels", &three]).refused(&[&three, "[3]", "2"]);
    let args = ["--regression", &features, "--labels", &three];
    run("separation", &args).refused(&[&features, "[2, 1]", "3 rows"]);
    run("separation", &[&features]).refused(&[&features, "--labels"]);
    run("separation", &[&table, "--labels", &labels]).refused(&[&table, "NPY"]);
    let same = folder.file("same.csv", "1,7\n2,7\n3,7\n");
    run("separation", &["--regression", &same]).refused(&[&same, "7", "different"]);
    let single = folder.file("single.csv", "1,7\n");
    run("separation", &["--regression", &single]).refused(&[&single, "1 sample", "2 or more"]);
}

#[test]
fn training_refuses_sets_that_cannot_be_learnt() {
    let folder = Folder::new("sets");
    run("train", &["--images", "64", "--no-control"]).refused(&[
        "bundled images",
        "64",
        "128 of --batch",
    ]);
    run("train", &["--images", "0"]).refused(&["--images 0", "1 to 2000"]);
    let one = folder.idx("one", 16, 28, 1);
    let args = ["--data", &one, "--batch", "8", "--epochs", "1", "--no-control"];
    run("train", &args).refused(&[&one, "all 16", "2 classes or more"]);
    let two = folder.idx("two", 16, 28, 2);
    let small = folder.idx("small", 16, 4, 2);
    run("train", &["--data", &small, "--batch", "8"]).refused(&["1x4x4"]);
    let args = ["--data", &two, "--images", "8", "--batch", "4", "--patience", "1"];
    run("train", &args).refused(&["--patience", "8 training images", "10 or more"]);
    let none = folder.path("none");
    run("train", &["--data", &none]).refused(&[&none]);
    let nowhere = folder.path("no folder/model.sepal");
    run("train", &["--images", "256", "--save", &nowhere]).refused(&[&nowhere, "creating"]);
}

/// What each stage of a short run was told of the layers in front of it.
fn prefixes(args: &[&str]) -> Vec<Value> {
    let out = run("train", &[&SHORT[..], &["--json"], args].concat()).good();
    let events: Vec<Value> = out.lines().map(json).collect();
    events.iter().for_each(|event| documented("train", event));
    let stages = events.into_iter().filter(|event| event["event"] == "stage");
    stages.map(|stage| stage["prefix"].clone()).collect()
}

#[test]
fn training_says_what_is_kept_of_frozen_layers() {
    let folder = Folder::new("kept");
    // Blocks of LeNet give 6x14x14 and 16x5x5 numbers for each of 256 images, in blocks of eight
    // channels.
    let bytes = |numbers: u64, size: u64| 256 * numbers * size;
    let check = |args: &[&str], expected: [(&str, u64, u64); 2]| {
        let prefixes = prefixes(args);
        assert_eq!((prefixes.len(), &prefixes[0]), (3, &Value::Null), "{args:?}");
        for (prefix, (store, copies, bytes)) in prefixes[1..].iter().zip(expected) {
            assert_eq!(prefix["store"], store, "{args:?}");
            assert_eq!((&prefix["copies"], &prefix["bytes"]), (&copies.into(), &bytes.into()));
        }
    };
    let [first, second] = [bytes(8 * 196, 4), bytes(400, 4)];
    let memory = "in memory as f32";
    check(&[], [(memory, 1, first), (memory, 1, second)]);
    let narrow = bytes(8 * 196, 2) + 256 * 4;
    check(&["--memory", "1M"], [("in memory as f16", 1, narrow), (memory, 1, second)]);
    let spill = folder.path("");
    let file = "in a file as f32";
    check(&["--memory", "500kB", "--spill", &spill], [(file, 1, first), (memory, 1, second)]);
    assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 0, "the file is left");
    let none = ("computed for every batch", 0, 0);
    check(&["--memory", "0"], [none, none]);
    check(&["--flip"], [none, none]);
    check(&["--flip", "--copies", "2"], [(memory, 2, 2 * first), (memory, 2, 2 * second)]);

    let said = run("train", &[&SHORT[..], &["--memory", "1M"]].concat());
    assert_eq!(said.status, 0);
    for words in
        ["frozen layers 0..4: kept in memory as f16, 804 kB", "0..8: kept in memory as f32"]
    {
        assert!(said.err.contains(words), "`{words}` is not in: {}", said.err);
    }
}

#[test]
fn training_refuses_what_it_cannot_keep() {
    let folder = Folder::new("spill");
    let missing = folder.path("missing");
    let args = [&SHORT[..], &["--memory", "0", "--spill", &missing]].concat();
    run("train", &args).refused(&[&missing, "creating a file in it"]);
    let args = [&SHORT[..], &["--copies", "2"]].concat();
    run("train", &args).refused(&["--copies", "--flip"]);
    // Colour images of 32x32 are the least that VGG16 takes.
    run("train", &[&SHORT[..], &["--model", "vgg16"]].concat()).refused(&["Vgg16", "1x28x28"]);
}

#[test]
fn training_takes_each_loss() {
    let losses = ["margin", "soft", "centre", "triplet"].map(|loss| {
        let said = run("train", &[&SHORT[..], &["--json", "--loss", loss]].concat()).good();
        let mut lines = said.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.find(|line| line["event"] == "stage_done").unwrap()["loss"].as_f64().unwrap()
    });
    // Of one net, on the same batches: each is a number of its own, and only Eq. 7 falls below 0.
    for (at, a) in losses.iter().enumerate() {
        assert!(losses[at + 1..].iter().all(|b| (a - b).abs() > 1e-3), "{losses:?}");
        assert_eq!(*a > 0.0, at < 3, "{losses:?}");
    }
}

#[test]
fn training_takes_other_strategies() {
    let stages = |more: &[&str]| -> Vec<(u64, u64, String)> {
        let said = run(
            "train",
            &[&SHORT[..], &["--json", "--model", "vgg6", "--width", "25"], more].concat(),
        )
        .good();
        let lines = said.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let stages = lines.filter(|line| line["event"] == "stage");
        let layer = |line: &Value, name: &str| line[name].as_u64().unwrap();
        let what = |line: &Value| line["objective"].as_str().unwrap().to_owned();
        stages.map(|line| (layer(&line, "first"), layer(&line, "last"), what(&line))).collect()
    };
    let by = |what: &str, ends: &[(u64, u64)]| -> Vec<(u64, u64, String)> {
        ends.iter().map(|&(first, last)| (first, last, what.to_owned())).collect()
    };
    let (si, views, entropy) = ("separation", "separation of views", "cross-entropy");
    let blocks = [(0, 3), (3, 7), (7, 10), (10, 14), (14, 17), (17, 21)];
    let classifier = by(entropy, &[(21, 24)]);
    let check = |more: &[&str], expected: &[&[(u64, u64, String)]]| {
        assert_eq!(stages(more), expected.concat(), "{more:?}");
    };
    let windows = [(0, 10), (3, 14), (7, 17), (10, 21)];
    check(&["--window", "3"], &[&by(si, &windows), &classifier]);
    let groups = ["--window", "3", "--stride", "3", "--readout", "conv", "--temperature", "0.05"];
    check(&groups, &[&by(si, &[(0, 10), (10, 21)]), &classifier]);
    check(&["--loss", "triplet", "--readout", "raw"], &[&by(si, &blocks), &classifier]);
    let alone = ["--strategy", "self-supervised", "--flip", "--optimiser", "sgd"];
    check(&alone, &[&by(views, &blocks), &classifier]);
    let backward = ["--strategy", "forward-backward"];
    check(&backward, &[&by(si, &[(0, 3)]), &by(entropy, &[(3, 24)])]);
    let greedy = ["--strategy", "greedy", "--auxiliary", "2", "--fine-tune", "1"];
    check(&greedy, &[&by(entropy, &blocks), &classifier, &by(entropy, &[(0, 24)])]);
    let local = ["--strategy", "local-losses"];
    check(&local, &[&by(entropy, &[(0, 21)]), &classifier]);

    let views = [&SHORT[..], &["--strategy", "self-supervised"]].concat();
    run("train", &views).refused(&["self-supervised", "--flip"]);
    let odd = [&views[..], &["--flip", "--batch", "33"]].concat();
    run("train", &odd).refused(&["--batch 33", "even"]);
}

/// A recipe is what its options are, and what a report writes.
#[test]
fn training_learns_as_a_file_says() {
    let folder = Folder::new("recipe");
    let from = ["--images", "256", "--batch", "64", "--epochs", "1", "--head-epochs", "2"];
    let more = ["--strategy", "greedy", "--width", "50", "--rate", "0.003", "--no-control"];
    let more = [&more[..], &["--warmup", "2", "--weight-decay", "0.01"]].concat();
    let report = folder.path("report");
    let (first, second) = (folder.path("first.sepal"), folder.path("second.sepal"));
    let args = [&from[..], &more, &["--report", &report, "--save", &first]].concat();
    run("train", &args);
    let recipe = folder.path("report/recipe.json");
    let written = json(&std::fs::read_to_string(&recipe).unwrap());
    assert_eq!((&written["warmup"], &written["weight_decay"]), (&2.into(), &0.01.into()));
    let again = ["--images", "256", "--no-control", "--recipe", &recipe];
    run("train", &[&again[..], &["--save", &second]].concat());
    assert!(std::fs::read(first).unwrap() == std::fs::read(&second).unwrap());
    let said = json(&std::fs::read_to_string(&recipe).unwrap());
    assert_eq!(
        (&said["way"], &said["batch"], &said["width"]),
        (&"greedy".into(), &64.into(), &50.into())
    );

    // Another net learns by it too.
    let third = folder.path("third.sepal");
    let deeper = [&again[..], &["--model", "vgg6", "--width", "25", "--save", &third]].concat();
    run("train", &deeper);
    let third = Loaded::open(Path::new(&third)).unwrap();
    assert_eq!((third.model().net.blocks.len(), third.model().net.shape(1).unwrap().c), (7, 4));

    let refused = |text: &str, words: &[&str]| {
        let path = folder.file("bad.json", text);
        run("train", &["--recipe", &path]).refused(&[&["bad.json"], words].concat());
    };
    refused("{", &["EOF", "line 1"]);
    refused(r#"{"batches": 3}"#, &["`batches`", "`batch`"]);
    refused(r#"{"batch": 1}"#, &["batch: found 1", "2 or more"]);
    refused(r#"{"width": 0}"#, &["width: found 0", "1 to 1000 percent"]);
    refused(r#"{"rate": -1}"#, &["rate: found -1", "above 0"]);
    let views = folder.file("views.json", r#"{"way": "self-supervised"}"#);
    run("train", &["--recipe", &views]).refused(&["self-supervised", "--flip"]);
    run("train", &["--recipe", &folder.path("none.json")]).refused(&["none.json"]);
    let both = run("train", &["--recipe", &recipe, "--epochs", "3"]);
    assert!(both.status == 2 && both.err.contains("cannot be used with"), "{}", both.err);
}

/// The recipes beside the programs are those of lines of the results.
#[test]
fn recipes_are_those_of_the_results() {
    let folder = Folder::new("recipes");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let results = std::fs::read_to_string(root.join("docs/results.jsonl")).unwrap();
    let lines: Vec<Value> = results.lines().map(json).collect();
    let small = ["--images", "64", "--batch", "32", "--model", "vgg6", "--width", "10"];
    let small = [&small[..], &["--si-samples", "50"]].concat();
    for (name, label) in [
        ("blocks", "cifar-10-vgg16/centre-conv-e3"),
        ("blocks", "cifar-10-10000/centre-conv-e3"),
        ("groups", "cifar-10-vgg16/centre-group3-conv-e5"),
        ("text", "ag-news-5000/centre-win3-e3"),
    ] {
        let path = root.join(format!("examples/recipes/{name}.json"));
        let text = std::fs::read_to_string(path).unwrap();
        let recipe: Learning = serde_json::from_str(&text).unwrap();
        let line = lines.iter().find(|line| line["label"] == label).unwrap();
        let args: Vec<&str> = line["args"].as_str().unwrap().split(' ').collect();
        // All that it says but the net and the data.
        let mut options = Vec::new();
        let mut at = args.iter().peekable();
        while let Some(&option) = at.next() {
            let value = at.next_if(|value| !value.starts_with("--"));
            if !["--data", "--images", "--model", "--width"].contains(&option) {
                options.extend([option].into_iter().chain(value.copied()));
            }
        }
        let report = folder.path(name);
        run("train", &[&small[..], &options, &["--report", &report]].concat());
        let said = std::fs::read_to_string(folder.0.join(name).join("recipe.json")).unwrap();
        let said: Learning = serde_json::from_str(&said).unwrap();
        let net = Learning { width: 100, architecture: Architecture::Lenet, batch: 128, ..said };
        assert_eq!(net, recipe, "{name}, {label}");
    }
}

/// Blocks end by themselves; the classifier makes all its passes.
#[test]
fn patience_ends_blocks() {
    let args = ["--images", "400", "--no-control", "--json", "--patience", "0"];
    let passes = ["--epochs", "30", "--head-epochs", "3"];
    let out = run("train", &[&args[..], &passes].concat()).good();
    let events = out.lines().map(json).filter(|event| event["event"] == "stage_done");
    let passes: Vec<u64> = events.map(|stage| stage["epochs"].as_u64().unwrap()).collect();
    assert!(passes.len() == 3 && passes[0] < 30 && passes[1] < 30 && passes[2] == 3, "{passes:?}");
}

#[test]
fn training_takes_other_nets_of_any_width() {
    let folder = Folder::new("nets");
    let save = folder.path("narrow.sepal");
    let narrow = ["--model", "alexnet", "--width", "3", "--json", "--save", &save];
    run("train", &[&SHORT[..], &narrow].concat()).good();
    let model = Loaded::open(Path::new(&save)).unwrap();
    // 3 percent of 256 filters, and still an output for each class.
    assert_eq!(model.model().net.shape(18).unwrap().to_string(), "1x8x4x4");
    assert_eq!(model.model().net.output().unwrap().to_string(), "1x10x1x1");
    run("evaluate", &[&save]).good();
    let refused = run("train", &[&SHORT[..], &["--width", "0"]].concat());
    assert_eq!(refused.status, 2, "{}", refused.err);
}

#[test]
fn training_reads_text() {
    let folder = Folder::new("text");
    let line = |i: u32| format!("{},title {i},{}\n", i % 2 + 1, ["rain ", "goal "][i as usize % 2]);
    for name in ["train.csv", "test.csv"] {
        std::fs::write(folder.path(name), (0..16).map(line).collect::<String>()).unwrap();
    }
    std::fs::write(folder.path("classes.txt"), "weather\nsport\n").unwrap();
    let data = folder.path("");
    let text = ["--data", &data, "--batch", "8", "--epochs", "1", "--head-epochs", "1"];
    let narrow = ["--model", "vdcnn9", "--width", "3", "--no-control", "--json"];
    let out = run("train", &[&text[..], &narrow].concat()).good();
    assert_eq!(json(out.lines().last().unwrap())["train"], 16);
    run("train", &[&text[..], &narrow, &["--flip"]].concat()).refused(&["--flip", "text"]);
    run("train", &[&text[..], &narrow, &["--border", "2"]].concat())
        .refused(&["--border 2", "1x1x1x1024"]);
    let image = ["--model", "lenet"];
    run("train", &[&text[..], &image].concat()).refused(&["Lenet", "1x1x1x1024"]);
}

#[test]
fn a_border_makes_room_for_a_deeper_net() {
    let folder = Folder::new("border");
    let (save, border) = (folder.path("model.sepal"), ["--border", "2"]);
    let deep = [&SHORT[..], &["--model", "vgg16", "--width", "5", "--json", "--save", &save]];
    run("train", &deep.concat()).refused(&["Vgg16", "1x1x28x28", "--border"]);
    let out = run("train", &[&deep.concat()[..], &border].concat()).good();
    let said = out.lines().map(json).find(|event| event["event"] == "accuracy").unwrap();
    let evaluate = |args: &[&str]| run("evaluate", &[&[&save[..], "--json"], args].concat());
    assert_eq!(json(&evaluate(&border).good())["accuracy"], said["head"]);
    evaluate(&[]).refused(&["1x28x28", "1x32x32"]);
    for pixels in ["0", "17"] {
        assert_eq!(evaluate(&["--border", pixels]).status, 2);
    }

    let image = folder.png("image.png", 28, &pixels(0));
    let mut framed = vec![0; 32 * 32];
    for (row, inner) in framed.chunks_mut(32).skip(2).zip(pixels(0).chunks(28)) {
        row[2..30].copy_from_slice(inner);
    }
    let framed = folder.png("framed.png", 32, &framed);
    let predict = |args: &[&str]| run("predict", &[&[&save[..], "--top", "10"], args].concat());
    let classes = |args: &[&str]| predict(args).good().split_once(": ").unwrap().1.to_owned();
    assert_eq!(classes(&[&image, "--border", "2"]), classes(&[&framed]));
    // The border is no part of what is turned around.
    let negative: Vec<u8> = pixels(0).iter().map(|pixel| 255 - pixel).collect();
    let negative = folder.png("negative.png", 28, &negative);
    assert_eq!(classes(&[&negative, "--border", "2", "--invert"]), classes(&[&framed]));
    predict(&[&image]).refused(&["28 x 28", "32 x 32", "--border"]);
    predict(&[&image, "--border", "16"]).refused(&["1x32x32", "larger than two borders"]);
}

/// Files of the program may not grow past 4 kB, as on a full disk.
#[cfg(unix)]
#[test]
fn a_full_disk_ends_a_run_that_needs_it() {
    let folder = Folder::new("full-spill");
    let script = "trap '' XFSZ; ulimit -f 8; exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(program("train")).args(SHORT);
    command.args(["--json", "--memory", "0", "--spill", &folder.path("")]);
    let ended: Ended = command.output().unwrap().into();
    ended.refused(&[&folder.path(""), "writing its temporary file", "large"]);
    assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 0, "the file is left");
}

#[test]
fn an_unknown_option_has_status_2() {
    for name in PROGRAMS {
        let ended = run(name, &["--nonsense"]);
        assert_eq!(ended.status, 2, "{name}: {}", ended.err);
        has(&ended.err, "error: ", &["--nonsense"]);
    }
    for (name, args) in [
        ("predict", &["model", "image", "--top", "0"][..]),
        ("separation", &["table", "--k", "0"]),
        ("separation", &["table", "--gamma", "nan"]),
        ("inspect", &["model", "--ram", "-1"]),
        ("evaluate", &["model", "--threads", "0"]),
        ("quantise", &["model"]),
        ("quantise", &["model", "out", "--to", "int4"]),
        ("quantise", &["model", "out", "--test", "0"]),
        ("train", &["--epochs", "0"]),
        ("train", &["--si-samples", "0"]),
        ("train", &["--memory", "much"]),
        ("train", &["--disk", "1M"]),
        ("train", &["--copies", "0"]),
        ("train", &["--every", "inf"]),
        ("train", &["--every", "1e30"]),
        ("train", &["--every", "nan"]),
        ("train", &["--every", "-1"]),
        ("reproduce", &["--table", "9"]),
        ("reproduce", &["--table", "3", "--seeds", "one"]),
    ] {
        assert_eq!(run(name, args).status, 2, "{name} {args:?}");
    }
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let folder = Folder::new("place");
    let file = folder.file("file", "not a folder");
    let save = format!("{file}/model.sepal");
    // With the first checkpoint, after one step.
    let args = [&SHORT[..], &["--every", "0", "--save", &save]].concat();
    run("train", &args).refused(&[&save]);
    assert_eq!(std::fs::read(&file).unwrap(), b"not a folder");
    // Before the training, which an option that is refused later would end.
    for save in [&folder.path(""), "..", "/"] {
        run("train", &["--images", "0", "--save", save]).refused(&[save, "creating"]);
    }
}

/// Files of the program may not grow past 4 kB, as on a full disk.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_model_that_was_there() {
    let folder = Folder::new("full");
    let save = model(&folder);
    let script = "trap '' XFSZ; ulimit -f 8; exec \"$@\"";
    let ended: Ended = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(program("train"))
        .args(SHORT)
        .args(["--every", "1000", "--seed", "1", "--save", &save])
        .output()
        .unwrap()
        .into();
    ended.refused(&[&save, "writing", "large"]);
    assert_eq!(&std::fs::read(&save).unwrap(), &trained().0);
    let left: Vec<_> = std::fs::read_dir(&folder.0).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

/// The standard output may be full, or nobody may read it.
#[cfg(target_os = "linux")]
#[test]
fn output_that_cannot_be_written_is_no_panic() {
    let folder = Folder::new("output");
    let path = model(&folder);
    let table = folder.file("table.csv", "0,x\n1,x\n5,y\n6,y\n7,y\n");
    let image = folder.png("image.png", 28, &pixels(0));
    let cases: [(&str, &[&str]); 4] = [
        ("inspect", &[&path]),
        ("evaluate", &[&path, "--json"]),
        ("predict", &[&path, &image]),
        ("separation", &[&table]),
    ];
    for (name, args) in cases {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = Command::new(program(name)).args(args).stdout(full).output().unwrap();
        Ended::from(output).refused(&["standard output"]);

        let mut child = Command::new(program(name))
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        Ended::from(child.wait_with_output().unwrap()).good();
    }
}

/// The sets of these tests are what they are meant to be.
#[test]
fn the_idx_writer_writes_what_the_library_reads() {
    let folder = Folder::new("idx");
    let split = data::open(folder.idx("set", 5, 8, 3)).unwrap();
    let expected: Vec<u16> = vec![0, 1, 2, 0, 1];
    assert_eq!((Dataset::len(&split.train), split.test.labels()), (5, &expected[..]));
}
