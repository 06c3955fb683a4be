//! The classes of a model.

use sepal::models::file::{FileError, Loaded};

/// A name for each output: the file's, or the output's number where the file has none.
pub fn names(model: &Loaded) -> Result<Vec<String>, FileError> {
    let file = model.file()?;
    let outputs = model.model().net.output().map_or(0, |shape| shape.sample().unwrap_or(0));
    let mut names: Vec<String> = file.class_names().map(str::to_owned).collect();
    names.extend((names.len() as u32..outputs).map(|output| output.to_string()));
    names.truncate(outputs as usize);
    Ok(names)
}
