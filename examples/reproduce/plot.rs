//! The plots: a panel for each data set and net, a colour for each way to learn.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use sepal::models::file::{self, FileError};

use crate::args::Args;
use crate::cells::{STRATEGIES, Scale, Set};
use crate::page::spread;
use crate::program::Failure;
use crate::results::Record;

const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(230, 159, 0),
    RGBColor(213, 94, 0),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(110, 110, 110),
];
const PANEL: (u32, u32) = (420, 300);
const COLUMNS: usize = 3;
/// Height of the legend.
const LEGEND: u32 = 36;

/// What one way to learn gives in a panel.
struct Line {
    strategy: usize,
    points: Vec<(f64, f64)>,
}

struct Panel {
    title: String,
    lines: Vec<Line>,
}

/// Writes the three plots of the runs at the scale of the command line.
pub fn write(folder: &Path, records: &[Record], args: &Args) -> Result<(), Failure> {
    let scales = [false, true].map(|text| Scale::new(args, text));
    let own: Vec<&Record> = records.iter().filter(|r| scales.contains(&r.scale)).collect();
    let blocks = panels(&own, |runs| {
        let count = runs.iter().map(|r| r.si.len()).min().unwrap_or(0);
        (0..count)
            .filter_map(|block| {
                let values: Option<Vec<f64>> =
                    runs.iter().map(|r| r.si.get(block)?.cross_si).collect();
                Some((block as f64, spread(&values?).0 * 100.0))
            })
            .collect()
    });
    let against = |x: &dyn Fn(&Record) -> f64| {
        panels(&own, |runs| runs.iter().map(|r| (x(r), r.head * 100.0)).collect())
    };
    let cpu = against(&|r| r.cpu_seconds);
    let memory = against(&|r| r.peak_bytes as f64 / 1e6);
    save(folder, "si-per-block.svg", &blocks, ["block (0 is the raw input)", "cross-SI %"], true)?;
    save(folder, "accuracy-cpu.svg", &cpu, ["CPU seconds", "accuracy %"], false)?;
    save(folder, "accuracy-memory.svg", &memory, ["counted MB", "accuracy %"], false)
}

/// Panels of what `points` makes of the runs of each cell.
fn panels(records: &[&Record], points: impl Fn(&[&Record]) -> Vec<(f64, f64)>) -> Vec<Panel> {
    let mut names: Vec<(&str, &str)> = Vec::new();
    for record in records {
        let name = (&*record.data, &*record.model);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let lines = |(data, model): (&str, &str)| {
        let line = |(strategy, way): (usize, &(&str, _, _, _))| {
            let runs = records.iter().filter(|r| (&*r.data, &*r.model) == (data, model));
            let runs: Vec<&Record> = runs.filter(|r| r.strategy == way.0).copied().collect();
            let points = if runs.is_empty() { Vec::new() } else { points(&runs) };
            (!points.is_empty()).then_some(Line { strategy, points })
        };
        STRATEGIES.iter().enumerate().filter_map(line).collect()
    };
    let title =
        |(data, model)| format!("{}, {model}", Set::named(data).map_or(data, |set| set.title));
    names.into_iter().map(|name| Panel { title: title(name), lines: lines(name) }).collect()
}

/// Draws and writes a plot, whole or not at all. No runs, no plot.
fn save(
    folder: &Path,
    name: &str,
    panels: &[Panel],
    axes: [&str; 2],
    joined: bool,
) -> Result<(), Failure> {
    if panels.is_empty() {
        return Ok(());
    }
    let mut svg = String::new();
    let columns = panels.len().min(COLUMNS);
    let rows = panels.len().div_ceil(columns);
    // The legend needs two panels' width.
    let size = (PANEL.0 * columns.max(2) as u32, PANEL.1 * rows as u32 + LEGEND);
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE)?;
        let (top, below) = root.split_vertically(LEGEND);
        legend(&top, panels)?;
        for (area, panel) in below.split_evenly((rows, columns)).iter().zip(panels) {
            draw(area, panel, axes, joined)?;
        }
        root.present()?;
    }
    let path = folder.join(name);
    Ok(file::replace(&path, |out| {
        let io = |error| FileError::Io { path: path.clone(), doing: "writing", error };
        out.write_all(svg.as_bytes()).map_err(io)
    })?)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn legend(area: &Area<'_>, panels: &[Panel]) -> Result<(), Failure> {
    let lines = || panels.iter().flat_map(|panel| &panel.lines);
    let mut x = 12;
    for (index, (_, title, _, _)) in STRATEGIES.iter().enumerate() {
        if lines().any(|line| line.strategy == index) {
            area.draw(&Circle::new((x, 18), 5, COLOURS[index].filled()))?;
            area.draw(&Text::new(*title, (x + 10, 11), ("sans-serif", 13)))?;
            x += 30 + 7 * title.len() as i32;
        }
    }
    Ok(())
}

/// The ends of an axis, with some room.
fn range(values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (low, high) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
    let room = if high > low { (high - low) * 0.08 } else { 1.0 };
    low - room..high + room
}

fn draw(area: &Area<'_>, panel: &Panel, [x, y]: [&str; 2], joined: bool) -> Result<(), Failure> {
    let points = || panel.lines.iter().flat_map(|line| &line.points);
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(36)
        .y_label_area_size(48)
        .build_cartesian_2d(range(points().map(|p| p.0)), range(points().map(|p| p.1)))?;
    let (across, up) = (chart.x_range(), chart.y_range());
    chart
        .configure_mesh()
        .x_desc(x)
        .y_desc(y)
        .x_labels(6)
        .y_labels(6)
        .x_label_formatter(&|x| match joined {
            // There is no half a block.
            true if x.fract() != 0.0 => String::new(),
            true => format!("{x:.0}"),
            false => short(*x, &across),
        })
        .y_label_formatter(&|y| short(*y, &up))
        .light_line_style(WHITE)
        .draw()?;
    for Line { strategy, points } in &panel.lines {
        let colour = COLOURS[*strategy];
        if joined {
            chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?;
        }
        chart.draw_series(points.iter().map(|&at| Circle::new(at, 4, colour.filled())))?;
    }
    Ok(())
}

/// A number as an axis shows it: neighbours on the axis differ.
fn short(x: f64, axis: &std::ops::Range<f64>) -> String {
    match axis.end - axis.start {
        0.0..0.5 => format!("{x:.2}"),
        0.5..10.0 => format!("{x:.1}"),
        _ => format!("{x:.0}"),
    }
}
