//! The layers.

use std::io::Write;

use sepal::arena::Dtype;
use sepal::layer::Layer;
use sepal::net::Model;
use sepal::plan::PlanError;
use sepal::shape::Shape;
use serde_json::{Value, json};

use crate::program::Failure;
use crate::sample::sample;

/// One layer.
pub struct Row {
    block: usize,
    layer: Layer,
    input: Shape,
    output: Shape,
    pub parameters: usize,
    dtype: Option<Dtype>,
    bytes: usize,
}

/// All of them.
pub fn rows(model: &Model<'_>) -> Result<Vec<Row>, PlanError> {
    let net = model.net;
    let row = |(at, &layer): (usize, &Layer)| {
        let stored = model.weights.layer(&net, at);
        // The weights come first; layers that only measure have none.
        let first = stored.iter().find(|tensor| !tensor.bytes.is_empty());
        Ok(Row {
            block: net.blocks.iter().filter(|&&end| usize::from(end) <= at).count() + 1,
            layer,
            input: net.shape(at)?,
            output: net.shape(at + 1)?,
            parameters: net.params(at + 1)? - net.params(at)?,
            dtype: first.map(|tensor| tensor.dtype),
            bytes: stored.iter().map(|tensor| tensor.bytes.len() + tensor.scales.len()).sum(),
        })
    };
    net.layers.iter().enumerate().map(row).collect()
}

impl Row {
    pub fn json(&self) -> Value {
        let sizes = |shape: Shape| [shape.c, shape.h, shape.w];
        json!({"block": self.block, "name": self.layer.name(), "layer": self.layer,
            "input": sizes(self.input), "output": sizes(self.output),
            "parameters": self.parameters, "dtype": self.dtype.map(name), "bytes": self.bytes})
    }

    /// The layer's name and what sets it apart from others of its name.
    fn what(&self) -> String {
        let name = self.layer.name();
        let window = |kernel: (u8, u8), stride: (u8, u8), pad: (u8, u8)| {
            let mut text = format!("{}x{}", kernel.0, kernel.1);
            if stride != (1, 1) {
                text += &format!(" stride {}x{}", stride.0, stride.1);
            }
            if pad != (0, 0) {
                text += &format!(" pad {}x{}", pad.0, pad.1);
            }
            text
        };
        match self.layer {
            Layer::Conv2d(l) => {
                let groups =
                    if l.groups == 1 { String::new() } else { format!(" groups {}", l.groups) };
                let bias = if l.bias { " bias" } else { "" };
                format!("{name} {}{groups}{bias}", window(l.kernel, l.stride, l.pad))
            }
            Layer::MaxPool(l) => {
                format!("{name} {}", window(l.window.kernel, l.window.stride, l.window.pad))
            }
            Layer::AvgPool(l) => {
                format!("{name} {}", window(l.window.kernel, l.window.stride, l.window.pad))
            }
            Layer::BatchNorm(l) if l.affine => format!("{name} affine"),
            Layer::Dense(l) if l.bias => format!("{name} bias"),
            Layer::Dropout(l) => format!("{name} {}", l.rate),
            Layer::Residual(l) => match l.project {
                Some(p) => format!("{name} {} back, 1x1 /{}", l.back, p.stride.0),
                None => format!("{name} {} back", l.back),
            },
            _ => name.to_owned(),
        }
    }
}

fn name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "f32",
        Dtype::F16 => "f16",
        Dtype::I8 => "i8",
        Dtype::U8 => "u8",
        Dtype::I32 => "i32",
        Dtype::U16 => "u16",
        Dtype::U32 => "u32",
        _ => "other",
    }
}

/// The table.
pub fn print(rows: &[Row], out: &mut dyn Write) -> Result<(), Failure> {
    writeln!(
        out,
        "\n{:>5} {:>5} {:<34} {:>11} {:>11} {:>10} {:>5} {:>9}",
        "block", "layer", "what", "input", "output", "parameters", "type", "bytes"
    )?;
    for (at, row) in rows.iter().enumerate() {
        let (input, output) = (sample(row.input), sample(row.output));
        writeln!(
            out,
            "{:>5} {at:>5} {:<34} {input:>11} {output:>11} {:>10} {:>5} {:>9}",
            row.block,
            row.what(),
            row.parameters,
            row.dtype.map_or("-", name),
            row.bytes
        )?;
    }
    Ok(())
}
