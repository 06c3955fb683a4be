//! `convert`: files become others and back.

use std::fs;

use sepal::format::Meta;
use sepal::models::file::{self, Loaded};
use sepal::models::fit::Fit;
use sepal::models::lenet::LENET5;

use super::{Folder, documented, json, run};

#[test]
fn files_become_others_and_back() {
    let folder = Folder::new("convert");
    let path = |name: &str| folder.path(name);
    let fit = Fit::new(LENET5, 4).unwrap();
    file::save(path("a.sepal").as_ref(), &fit.model(), &Meta::NONE).unwrap();
    let numbers = |name: &str| {
        let loaded = Loaded::open(path(name).as_ref()).unwrap();
        let model = loaded.model();
        assert_eq!(model.net.layers, LENET5.layers);
        let all = (0..model.net.layers.len()).flat_map(|at| model.weights.layer(&model.net, at));
        all.map(|stored| stored.bytes.to_vec()).collect::<Vec<_>>()
    };
    let steps: [(&str, &str, &[&str]); 5] = [
        ("a.sepal", "b.onnx", &[]),
        ("b.onnx", "c.sepal", &[]),
        ("c.sepal", "d.safetensors", &[]),
        ("d.safetensors", "e.sepal", &["--architecture", "lenet", "--shape", "1,28,28"]),
        ("d.safetensors", "f.sepal", &["--architecture", &path("a.sepal")]),
    ];
    for (from, to, options) in steps {
        let (from, to) = (path(from), path(to));
        let out = run("convert", &[&[&from[..], &to[..]], options].concat()).good();
        assert!(out.contains("1x28x28") && out.contains(&to), "{out}");
    }
    let expected = numbers("a.sepal");
    for name in ["c.sepal", "e.sepal", "f.sepal"] {
        assert_eq!(numbers(name), expected, "{name}");
    }
    let args = [&path("b.onnx")[..], &path("g.sepal"), "--json", "--mean", "0.5", "--std", "0.25"];
    let report = json(&run("convert", &args).good());
    documented("convert", &report);
    assert_eq!(report["layers"][0]["from"], "0_conv2d");
    assert_eq!(report["ending"], "logits");
    let loaded = Loaded::open(path("g.sepal").as_ref()).unwrap();
    assert_eq!(loaded.model().net.input.normalisation.mean[0], 0.5);
}

#[test]
fn what_cannot_be_converted_is_named() {
    let folder = Folder::new("not-converted");
    let path = |name: &str| folder.path(name);
    fs::write(path("bad.onnx"), b"none").unwrap();
    fs::write(path("bad.safetensors"), b"none").unwrap();
    let refused = |args: &[&str], words: &[&str]| run("convert", args).refused(words);
    let (onnx, weights, out) = (path("bad.onnx"), path("bad.safetensors"), path("out.sepal"));
    refused(&[&onnx, &out], &["bad.onnx", "no ONNX model"]);
    refused(&[&weights, &out], &["bad.safetensors", "--architecture", "lenet"]);
    refused(&[&weights, &out, "--architecture", "lenet"], &["--shape"]);
    let all = ["--architecture", "lenet", "--shape", "1,28,28"];
    refused(&[&[&weights[..], &out], &all[..]].concat(), &["bad.safetensors", "no safetensors"]);
    refused(&[&onnx, &path("out.h5")], &["out.h5", ".safetensors"]);
    refused(&[&onnx, &out, "--shape", "1,2"], &["--shape", "2 numbers, expected 3"]);
    assert!(!std::path::Path::new(&out).exists());
}
