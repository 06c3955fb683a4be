//! The node tests of ONNX's backend test suite, for every operator that is claimed.
//!
//! `node.safetensors.gz` has the small ones, `node_tests.py` writes a file of all, which
//! `SEPAL_NODE_TESTS` names. `node.txt` says of each what becomes of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sepal::cpu::OnCpu;
use sepal::models::onnx::{self, OnnxError};
use sepal::reference::OnReference;

use super::vectors::{self, Case};

/// The tolerance of the suite's own runner.
fn close(found: &[f32], expected: &[f32]) -> bool {
    let near = |(f, e): (&f32, &f32)| (f - e).abs() <= 1e-7 + 1e-3 * e.abs();
    found.len() == expected.len() && found.iter().zip(expected).all(near)
}

/// `passed`, `refused: why` or `failed`.
fn outcome(case: &Case) -> String {
    let net = match onnx::read(&case.model) {
        Ok(net) => net,
        Err(OnnxError::Unsupported(nodes)) => return format!("refused: {}", nodes[0].reason),
        Err(error) => return format!("refused: {error}"),
    };
    let found = [
        vectors::run(&OnReference, &net, net.ending(), &case.input),
        vectors::run(&OnCpu::default(), &net, net.ending(), &case.input),
    ];
    match found.iter().all(|found| close(found, &case.output)) {
        true => "passed".to_owned(),
        false => format!("failed: {found:?}, expected {:?}", case.output),
    }
}

#[test]
fn node_tests_pass_or_are_refused_by_name() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interchange");
    let all = std::env::var_os("SEPAL_NODE_TESTS").map(PathBuf::from);
    let bytes = vectors::open(&all.clone().unwrap_or(folder.join("node.safetensors.gz")));
    let listed = std::fs::read_to_string(folder.join("node.txt")).unwrap();
    let listed: BTreeMap<&str, &str> =
        listed.lines().filter_map(|line| line.split_once(' ')).collect();
    let (mut report, mut passed) = (String::new(), 0);
    let cases = vectors::cases(&bytes);
    for case in &cases {
        let found = outcome(case);
        passed += usize::from(found == "passed");
        report += &format!("{} {found}\n", case.name);
    }
    println!("{report}{} tests, {passed} passed", cases.len());
    for line in report.lines() {
        let (name, found) = line.split_once(' ').unwrap();
        assert!(!found.starts_with("failed"), "{line}");
        assert_eq!(listed.get(name), Some(&found), "{name}");
    }
    if all.is_some() {
        assert_eq!(listed.len(), cases.len(), "all that are listed");
    }
}
