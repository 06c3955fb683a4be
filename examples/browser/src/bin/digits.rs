//! How well digits of a folder with MNIST's files are named, before and after a training:
//!     digits DIR CLASSES SHOWN RUNS
//! In each run other digits are shown, SHOWN of each, and 300 later ones of the test set are named.

use std::error::Error;
use std::fs;
use std::path::Path;

use sepal_browser::learner::{Learner, PIXELS, Room};

const TESTED: usize = 300;

/// Percent named right, mean probability of what is named, percent taken for none of these.
fn judge(learner: &mut Learner<'_>, tested: &[(&[u8], usize)]) -> Result<[f64; 3], Box<dyn Error>> {
    let mut sums = [0.0; 3];
    for (image, class) in tested {
        learner.room.drawing.copy_from_slice(image);
        let found = learner.predict()?;
        let nearest = usize::from(found.nearest.ok_or("no class")?);
        sums[0] += f64::from(u8::from(nearest == *class));
        sums[1] += f64::from(learner.room.probabilities[nearest]);
        sums[2] += f64::from(u8::from(found.none));
    }
    Ok(sums.map(|sum| 100.0 * sum / tested.len() as f64))
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [folder, classes, shown, runs] = &args[..] else {
        return Err("expected DIR CLASSES SHOWN RUNS".into());
    };
    let (classes, shown): (usize, usize) = (classes.parse()?, shown.parse()?);
    let runs: usize = runs.parse()?;
    let read = |name| fs::read(Path::new(folder).join(name));
    let (images, labels) = (read("t10k-images-idx3-ubyte")?, read("t10k-labels-idx1-ubyte")?);
    let (images, labels) =
        (images.get(16..).unwrap_or_default(), labels.get(8..).unwrap_or_default());
    if images.len() != labels.len() * PIXELS {
        return Err(format!("{} labels for {} bytes of images", labels.len(), images.len()).into());
    }
    let mut room = Box::new(Room::NEW);
    let mut learner = Learner::new(&mut room)?;
    let mut means = [[0.0; 3]; 2];
    let mut better = [0; 2];
    for run in 0..runs {
        learner.clear()?;
        let digits: Vec<u8> = (0..classes).map(|c| ((run * 3 + c * 7) % 10) as u8).collect();
        let from = (run * 997) % 5000;
        let mut samples = (from..labels.len()).chain(0..from).filter_map(|at| {
            let class = digits.iter().position(|&digit| digit == labels[at])?;
            Some((&images[at * PIXELS..][..PIXELS], class))
        });
        let mut given = vec![0; classes];
        while given.iter().any(|&count| count < shown) {
            let (image, class) = samples.next().ok_or("too few digits")?;
            if given[class] < shown {
                learner.room.drawing.copy_from_slice(image);
                learner.keep(class as u32)?;
                given[class] += 1;
            }
        }
        let tested: Vec<_> = samples.take(TESTED).collect();
        let before = judge(&mut learner, &tested)?;
        learner.begin()?;
        while learner.step()? > 0 {}
        let after = judge(&mut learner, &tested)?;
        better[0] += usize::from(after[0] > before[0]);
        better[1] += usize::from(after[0] < before[0]);
        for (mean, found) in means.iter_mut().zip([before, after]) {
            mean.iter_mut().zip(found).for_each(|(mean, x)| *mean += x / runs as f64);
        }
    }
    for (when, [right, sure, none]) in ["before", "after"].iter().zip(means) {
        println!("{when}: {right:.1} % right, {sure:.1} % sure, {none:.1} % none of these");
    }
    let [better, worse] = better;
    println!("better in {better} runs of {runs}, worse in {worse}");
    Ok(())
}
