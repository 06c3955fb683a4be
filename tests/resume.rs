//! Training that is killed goes on where it was, bit for bit.
#![cfg(all(feature = "cpu", feature = "models"))]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sepal::rng::{Purpose, Rng};

/// The example, which cargo builds for the tests of its package.
fn train(save: &Path) -> Command {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().unwrap().parent().unwrap().join("examples/train");
    let mut command = Command::new(program);
    let options = "--images 300 --epochs 2 --head-epochs 3 --batch 64 --no-control --every 0";
    command.args(options.split(' ')).arg("--save").arg(save);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn checkpoint(save: &Path) -> PathBuf {
    save.with_file_name("model.sepal.checkpoint")
}

fn finish(child: Child) -> (bool, String) {
    let output = child.wait_with_output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// `SEPAL_KILLS=200 cargo test --test resume killed` takes more moments than the few of every day.
#[test]
fn a_killed_run_gives_the_model_of_one_that_was_not() {
    let wanted = std::env::var("SEPAL_KILLS").map_or(6, |kills| kills.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let (whole, save) = (folder.path().join("whole.sepal"), folder.path().join("model.sepal"));
    let began = Instant::now();
    let (done, errors) = finish(train(&whole).spawn().unwrap());
    assert!(done, "{errors}");
    let (length, expected) = (began.elapsed(), std::fs::read(&whole).unwrap());

    let mut rng = Rng::new(1, Purpose::Sample, 0, 0);
    let (mut kills, mut resumed, mut same) = (0, 0, 0);
    while kills < wanted {
        resumed += u32::from(checkpoint(&save).exists());
        let mut child = train(&save).arg("--resume").spawn().unwrap();
        // Any moment of a whole run, and now and then one past its end: it is left to end there.
        std::thread::sleep(length.mul_f32(1.2 * rng.uniform()));
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
        }
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        let killed = output.status.code().is_none();
        kills += u32::from(killed);
        assert!(killed || output.status.success(), "{errors}");
        assert!(!errors.contains("error"), "{errors}");
        // After its last act it may still be killed.
        if save.exists() && !checkpoint(&save).exists() {
            assert!(std::fs::read(&save).unwrap() == expected, "after {kills} kills");
            std::fs::remove_file(&save).unwrap();
            same += 1;
        }
    }
    let (done, errors) = finish(train(&save).arg("--resume").spawn().unwrap());
    assert!(done && std::fs::read(&save).unwrap() == expected, "{errors}");
    assert!(!checkpoint(&save).exists(), "the checkpoint of a finished run is left");
    assert!(resumed > 0, "{kills} kills, none of which left a checkpoint");
    println!("{kills} kills, {resumed} runs resumed, {} models the same", same + 1);
}

/// What frozen blocks give is kept as f16, of augmented copies, and filled anew by a run that goes
/// on.
#[cfg(unix)]
#[test]
fn kept_features_are_the_same_in_a_run_that_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, save) = (folder.path().join("whole.sepal"), folder.path().join("model.sepal"));
    // Two copies of 300 images: 1.4 MB as f16 behind the first block, 1 MB as f32 behind the second.
    let kept = |save: &Path, memory: &str| {
        let mut command = train(save);
        command.args(["--flip", "--shift", "2", "--copies", "2", "--memory", memory, "--spill"]);
        command.arg(folder.path());
        command
    };
    let (done, errors) = finish(kept(&whole, "2M").spawn().unwrap());
    assert!(done && errors.contains("as f16, 2 copies"), "{errors}");

    let mut child = kept(&save, "2M").spawn().unwrap();
    wait_for(&mut child, &checkpoint(&save));
    child.kill().unwrap();
    child.wait().unwrap();
    // With more memory they would be f32.
    let (done, errors) = finish(kept(&save, "1G").arg("--resume").spawn().unwrap());
    assert!(!done && errors.contains("identity"), "{errors}");
    for wait in (0..).map(|round: u64| Duration::from_millis(40 + 30 * round)) {
        let mut child = kept(&save, "2M").arg("--resume").spawn().unwrap();
        std::thread::sleep(wait);
        if child.try_wait().unwrap().is_none() {
            interrupt(&child);
        }
        if child.wait_with_output().unwrap().status.success() {
            break;
        }
    }
    assert_eq!(std::fs::read(&save).unwrap(), std::fs::read(&whole).unwrap());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "more than two models");
}

/// Wrong labels are drawn, and nothing of frozen blocks is kept, until the classifier learns.
#[cfg(unix)]
#[test]
fn labels_written_into_samples_are_the_same_in_a_run_that_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, save) = (folder.path().join("whole.sepal"), folder.path().join("model.sepal"));
    let forward = |save: &Path| {
        let mut command = train(save);
        command.args(["--strategy", "forward-forward"]);
        command
    };
    let (done, errors) = finish(forward(&whole).spawn().unwrap());
    assert!(done, "{errors}");
    let mut child = forward(&save).spawn().unwrap();
    wait_for(&mut child, &checkpoint(&save));
    child.kill().unwrap();
    child.wait().unwrap();
    let (done, errors) = finish(forward(&save).arg("--resume").spawn().unwrap());
    assert!(done, "{errors}");
    assert_eq!(std::fs::read(&save).unwrap(), std::fs::read(&whole).unwrap());
}

#[test]
fn a_checkpoint_of_another_run_is_refused_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let save = folder.path().join("model.sepal");
    let mut child = train(&save).spawn().unwrap();
    while !checkpoint(&save).exists() {
        assert!(child.try_wait().unwrap().is_none(), "ended without a checkpoint");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let kept = std::fs::read(checkpoint(&save)).unwrap();

    let (done, errors) = finish(train(&save).args(["--resume", "--seed", "1"]).spawn().unwrap());
    assert!(!done);
    assert!(errors.contains("model.sepal.checkpoint") && errors.contains("identity"), "{errors}");
    assert_eq!(std::fs::read(checkpoint(&save)).unwrap(), kept);
}

#[test]
fn a_finished_model_is_not_trained_again() {
    let folder = tempfile::tempdir().unwrap();
    let save = folder.path().join("model.sepal");
    let (done, errors) = finish(train(&save).spawn().unwrap());
    assert!(done && !checkpoint(&save).exists(), "{errors}");
    let kept = std::fs::read(&save).unwrap();
    let (done, errors) = finish(train(&save).args(["--resume", "--seed", "1"]).spawn().unwrap());
    assert!(!done && errors.contains("model.sepal: a finished model"), "{errors}");
    assert_eq!(std::fs::read(&save).unwrap(), kept);
}

#[cfg(unix)]
fn interrupt(child: &Child) {
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// Waits for a file that a run writes on its way.
#[cfg(unix)]
fn wait_for(child: &mut Child, file: &Path) {
    while !file.exists() {
        assert!(child.try_wait().unwrap().is_none(), "ended without {}", file.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_has_status_130_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, save) = (folder.path().join("whole.sepal"), folder.path().join("model.sepal"));
    let long = |save: &Path| {
        let mut command = train(save);
        command.args(["--strategy", "end-to-end", "--cutout", "5"]);
        command
    };
    let (done, errors) = finish(long(&whole).spawn().unwrap());
    assert!(done, "{errors}");

    let mut child = long(&save).spawn().unwrap();
    wait_for(&mut child, &checkpoint(&save));
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    // It may have ended before the signal came.
    assert!(output.status.code() == Some(130) || save.exists(), "{errors}");
    assert_eq!(output.status.success(), save.exists(), "{errors}");
    if !output.status.success() {
        let (done, errors) = finish(long(&save).arg("--resume").spawn().unwrap());
        assert!(done, "{errors}");
    }
    assert_eq!(std::fs::read(&save).unwrap(), std::fs::read(&whole).unwrap());
}

/// The model is saved by then: only what it is measured against is left.
#[cfg(unix)]
#[test]
fn the_control_can_be_interrupted_too() {
    let folder = tempfile::tempdir().unwrap();
    let save = folder.path().join("model.sepal");
    let mut command = train(&save);
    let program = command.get_program().to_owned();
    command = Command::new(program);
    command.args(["--images", "300", "--epochs", "1", "--head-epochs", "200", "--save"]).arg(&save);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for(&mut child, &save);
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
}
