//! What breaks while a net is trained is found and named, and nothing that was there is lost.
#![cfg(unix)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The example, which cargo builds for the tests of its package.
fn train(save: &Path) -> Command {
    train_on("200", "0", save)
}

/// On so many images, with checkpoints after so many seconds.
fn train_on(images: &str, every: &str, save: &Path) -> Command {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().unwrap().parent().unwrap().join("examples/train");
    let mut command = Command::new(program);
    let options = "--epochs 1 --head-epochs 2 --batch 64 --no-control";
    command.args(options.split(' ')).args(["--images", images, "--every", every]);
    command.arg("--save").arg(save).stdin(Stdio::null());
    command
}

fn checkpoint(save: &Path) -> PathBuf {
    save.with_file_name("model.sepal.checkpoint")
}

/// The errors of a run that ended as it should, without a panic.
#[track_caller]
fn errors(output: &Output, good: bool) -> String {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!errors.contains("panicked"), "{errors}");
    assert_eq!(output.status.success(), good, "{errors}");
    errors
}

#[track_caller]
fn refused(command: &mut Command, words: &[&str]) {
    let errors = errors(&command.output().unwrap(), false);
    for word in words {
        assert!(errors.contains(word), "`{word}` is not in: {errors}");
    }
}

/// The command with files that may not grow past so many blocks of 512 bytes, as on a full disk.
fn on_a_full_disk(command: &Command, blocks: u32) -> Command {
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"");
    let mut full = Command::new("sh");
    full.args(["-c", &script, "sh"]).arg(command.get_program()).args(command.get_args());
    full
}

/// A checkpoint of a run that was killed, made by `command`.
fn interrupted(mut command: Command, save: &Path) -> Vec<u8> {
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    while !checkpoint(save).exists() {
        assert!(child.try_wait().unwrap().is_none(), "ended without a checkpoint");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    std::fs::read(checkpoint(save)).unwrap()
}

/// Names of what lies in a folder.
fn names(folder: &Path) -> Vec<String> {
    let all = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        all.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_full_disk_leaves_the_checkpoint_that_was_there_to_go_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, save) = (folder.path().join("whole.sepal"), folder.path().join("model.sepal"));
    errors(&train(&whole).output().unwrap(), true);
    let kept = interrupted(train(&save), &save);
    refused(
        &mut on_a_full_disk(train(&save).arg("--resume"), 8),
        &["model.sepal.checkpoint", "writing", "large"],
    );
    assert_eq!(std::fs::read(checkpoint(&save)).unwrap(), kept);
    // With room again it goes on as if nothing had been.
    errors(&train(&save).arg("--resume").output().unwrap(), true);
    assert_eq!(std::fs::read(&save).unwrap(), std::fs::read(&whole).unwrap());
    assert_eq!(names(folder.path()), ["model.sepal", "whole.sepal"]);
}

/// Root writes where it likes, so there is a folder that takes no files from anyone too.
#[test]
fn a_folder_that_cannot_be_written_is_named_before_anything_is_trained() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let shut = folder.path().join("shut");
    std::fs::create_dir(&shut).unwrap();
    std::fs::set_permissions(&shut, std::fs::Permissions::from_mode(0o555)).unwrap();
    let root = std::fs::write(shut.join("try"), "").is_ok();
    let shut = if root { Path::new("/proc/self") } else { &shut };
    // No images would be refused next.
    refused(&mut train_on("0", "0", &shut.join("model.sepal")), &["model.sepal", "creating"]);
    let mut spill = train(&folder.path().join("model.sepal"));
    refused(spill.args(["--memory", "0", "--spill"]).arg(shut), &[&shut.display().to_string()]);
    assert!(!checkpoint(&folder.path().join("model.sepal")).exists());
}

#[test]
fn a_checkpoint_that_is_damaged_or_of_another_version_is_named_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let save = folder.path().join("model.sepal");
    let good = interrupted(train(&save), &save);
    let changed = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    let version = {
        // The crate's version is text in the manifest; the header and manifest are summed anew.
        let mut bytes = good.clone();
        let text = env!("CARGO_PKG_VERSION").as_bytes();
        let at = bytes.windows(text.len()).position(|window| window == text).unwrap();
        bytes[at] = if bytes[at] == b'9' { b'8' } else { b'9' };
        let manifest = u32::from_le_bytes(bytes[16..20].try_into().unwrap()) as usize;
        let sum = crc(&[&bytes[..28], &bytes[32..32 + manifest]].concat());
        bytes[28..32].copy_from_slice(&sum.to_le_bytes());
        bytes
    };
    for (bytes, word) in [
        (good[..good.len() - 1].to_vec(), "file length"),
        (good[..100].to_vec(), "file length"),
        (vec![], "file length"),
        (changed(0), "magic"),
        (changed(8), "major version"),
        (changed(40), "manifest checksum"),
        (changed(good.len() - 8), "weights checksum"),
        (version, "crate version"),
    ] {
        std::fs::write(checkpoint(&save), &bytes).unwrap();
        refused(train(&save).arg("--resume"), &["model.sepal.checkpoint", word]);
        assert!(std::fs::read(checkpoint(&save)).unwrap() == bytes, "{word}");
    }
    std::fs::write(checkpoint(&save), &good).unwrap();
    errors(&train(&save).arg("--resume").output().unwrap(), true);
}

/// CRC-32 bit by bit.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
    })
}

#[test]
fn data_that_changed_between_two_runs_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let (set, save) = (folder.path().join("set"), folder.path().join("model.sepal"));
    std::fs::create_dir(&set).unwrap();
    let images = |count: u32| {
        let mut bytes = vec![0, 0, 8, 3];
        [count, 28, 28].iter().for_each(|dim| bytes.extend(dim.to_be_bytes()));
        bytes.extend((0..count * 784).map(|i| (i / 784 * 50 + i % 97) as u8));
        bytes
    };
    let labels = |count: u32| {
        let mut bytes = vec![0, 0, 8, 1];
        bytes.extend(count.to_be_bytes());
        bytes.extend((0..count).map(|i| (i % 2) as u8));
        bytes
    };
    for (part, count) in [("train", 128), ("t10k", 32)] {
        std::fs::write(set.join(format!("{part}-images-idx3-ubyte")), images(count)).unwrap();
        std::fs::write(set.join(format!("{part}-labels-idx1-ubyte")), labels(count)).unwrap();
    }
    let run = || {
        let mut command = train_on("128", "0", &save);
        command.arg("--data").arg(&set);
        command
    };
    let kept = interrupted(run(), &save);
    // One bit of one pixel; one label.
    let path = |part: &str| set.join(format!("train-{part}"));
    let (x, y) = (path("images-idx3-ubyte"), path("labels-idx1-ubyte"));
    let (good_x, good_y) = (images(128), labels(128));
    let (mut pixel, mut label) = (good_x.clone(), good_y.clone());
    pixel[1000] ^= 1;
    label[20] ^= 1;
    for (new_x, new_y) in [(&pixel, &good_y), (&good_x, &label)] {
        std::fs::write(&x, new_x).unwrap();
        std::fs::write(&y, new_y).unwrap();
        refused(run().arg("--resume"), &["model.sepal.checkpoint", "identity", "data"]);
        assert_eq!(std::fs::read(checkpoint(&save)).unwrap(), kept);
    }
    std::fs::write(&x, &good_x).unwrap();
    std::fs::write(&y, &good_y).unwrap();
    errors(&run().arg("--resume").output().unwrap(), true);
}

/// The peak of the whole process, as the system counts it: what frozen layers give takes no more
/// of it than it may, whether that is nothing, too little, or more than enough.
#[cfg(target_os = "linux")]
#[test]
fn a_limit_of_memory_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let script = "\"$@\" & pid=$!; while now=$(sed -n 's/^VmHWM:[^0-9]*\\([0-9]*\\).*/\\1/p' \
                  /proc/$pid/status) && [ \"$now\" ]; do peak=$now; sleep 0.02; done; \
                  wait $pid || exit; echo \"peak $peak\"";
    let peak = |memory: u64| {
        let save = folder.path().join(format!("{memory}.sepal"));
        let mut run = train_on("2000", "1000", &save);
        run.args(["--flip", "--copies", "8", "--memory", &memory.to_string()]);
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).arg(run.get_program()).args(run.get_args());
        let output = command.output().unwrap();
        errors(&output, true);
        let out = String::from_utf8(output.stdout).unwrap();
        let peak = out.lines().find_map(|line| line.strip_prefix("peak ")).expect("a peak");
        println!("{memory} bytes allowed, {peak} kB at the peak");
        peak.parse::<u64>().unwrap() * 1024
    };
    // Behind the first block the 16,000 samples are 74 MB as f32, and half of that as f16.
    let least = peak(0);
    let more = [10_000_000, 45_000_000, 100_000_000].map(|allowed| {
        let peak = peak(allowed);
        // What an allocator rounds up, and the pages of the code that runs.
        assert!(peak < least + allowed + 4_000_000, "{peak} bytes, {least} with none allowed");
        peak
    });
    assert!(more[2] > least + 20_000_000, "{more:?}, {least}: nothing was kept");
}
