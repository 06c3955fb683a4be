//! What the fuzzers of `tests/fuzz` start from and what they found, read again without them.
//!
//! `SEPAL_BLESS=1 cargo test --all-features --test corpus` writes the seeds.

#[path = "../fuzz/src/readers/mod.rs"]
#[expect(dead_code, reason = "a name is looked up by the fuzzers only")]
mod readers;

mod python;
mod seeds;

use std::path::{Path, PathBuf};

use readers::{Random, TARGETS};

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target)
}

/// A file that panics is named by the panic's test output: it is printed before it is read.
#[test]
fn every_file_of_the_corpus_is_read_without_a_panic() {
    for target in &TARGETS {
        let mut files: Vec<_> = std::fs::read_dir(corpus(target.name))
            .unwrap_or_else(|error| panic!("the corpus of {}: {error}", target.name))
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        assert!(!files.is_empty(), "no corpus of {}", target.name);
        for path in files {
            let bytes = std::fs::read(&path).unwrap();
            println!("{}", path.display());
            (target.check)(&bytes);
            // A few changes of each, of the fuzzers' own kind.
            for seed in 0..24 {
                let mut changed = bytes.clone();
                let mut random = Random::new(seed);
                (target.mutate)(&mut changed, seed, &mut |piece| change(piece, &mut random));
                println!("{}, changed with seed {seed}", path.display());
                (target.check)(&changed);
            }
        }
    }
}

/// Changes, adds or takes a byte or a few.
fn change(bytes: &mut Vec<u8>, random: &mut Random) {
    let at = random.below(bytes.len() + 1);
    match random.below(4) {
        0 => bytes.truncate(at),
        1 => bytes.insert(at, random.below(256) as u8),
        2 => bytes.resize(bytes.len() + random.below(64), random.below(256) as u8),
        _ => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
    }
}
