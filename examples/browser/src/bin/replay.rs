//! Does on the host what test.mjs did in node, with the same drawings, and prints what it learnt in
//! the same form.

use std::error::Error;
use std::fs;
use std::path::Path;

use sepal_browser::learner::{Learner, PIXELS, Room};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("expected the folder that test.mjs wrote to")?;
    let read = |name| fs::read(Path::new(&folder).join(name));
    let (kept, fresh) = (read("kept")?, read("fresh")?);
    let drawings = |bytes: &[u8]| {
        let records = bytes.chunks_exact(1 + PIXELS);
        records.map(|record| (record[0], record[1..].to_vec())).collect::<Vec<_>>()
    };
    let mut room = Box::new(Room::NEW);
    let mut learner = Learner::new(&mut room)?;
    for (label, cells) in drawings(&kept) {
        learner.room.drawing.copy_from_slice(&cells);
        learner.keep(label.into())?;
    }
    let before = learner.room.separation.si;
    learner.begin()?;
    while learner.step()? > 0 {}
    println!("{:016x}", learner.digest());
    println!("{}\n{}", f64::from(before), f64::from(learner.room.separation.si));
    for (_, cells) in drawings(&fresh) {
        learner.room.drawing.copy_from_slice(&cells);
        let found = learner.predict()?;
        let nearest = found.nearest.map_or("null".into(), |class| class.to_string());
        let bits = learner.room.probabilities.map(|p| p.to_bits().to_string());
        println!("{nearest} {} {}", u8::from(found.none), bits.join(" "));
    }
    Ok(())
}
