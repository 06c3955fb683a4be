//! The plots: a panel for each data set, net and scale, a colour for each way to learn.

use crate::cells::{STRATEGIES, Scale, Set, Strategy};
use crate::chart::{Chart, Line, Panel};
use crate::page::spread;
use crate::program::Failure;
use crate::results::{Record, kinds};

/// The three plots of the runs, and their files' names; none without runs.
pub fn plots(records: &[Record]) -> Result<Vec<(&'static str, String)>, Failure> {
    let blocks = panels(records, &[None], |runs| {
        let count = runs.iter().map(|r| r.si.len()).min().unwrap_or(0);
        (0..count)
            .filter_map(|block| {
                let values: Option<Vec<f64>> =
                    runs.iter().map(|r| r.si.get(block)?.cross_si).collect();
                Some((block as f64, spread(&values?).0 * 100.0))
            })
            .collect()
    });
    let against = |machines: &[Option<&str>], x: &dyn Fn(&Record) -> f64| {
        panels(records, machines, |runs| runs.iter().map(|r| (x(r), r.head * 100.0)).collect())
    };
    // Seconds of other machines do not go into one panel.
    let each: Vec<Option<&str>> = match &kinds(records, |r| &*r.machine)[..] {
        [] | [_] => vec![None],
        several => several.iter().copied().map(Some).collect(),
    };
    let cpu = against(&each, &|r| r.cpu_seconds);
    let memory = against(&[None], &|r| r.peak_bytes as f64 / 1e6);
    let names = STRATEGIES.map(|strategy| strategy.title);
    let mut plots = Vec::new();
    for (file, panels, axes, joined) in [
        ("si-per-block.svg", blocks, ["block (0 is the raw input)", "cross-SI %"], true),
        ("accuracy-cpu.svg", cpu, ["CPU seconds", "accuracy %"], false),
        ("accuracy-memory.svg", memory, ["counted MB", "accuracy %"], false),
    ] {
        let svg = Chart { panels: &panels, axes, names: &names, joined, bare: false }.svg()?;
        plots.extend(svg.map(|svg| (file, svg)));
    }
    Ok(plots)
}

/// Panels of what `points` makes of the runs of each cell, on each of the machines or on all.
fn panels(
    records: &[Record],
    machines: &[Option<&str>],
    points: impl Fn(&[&Record]) -> Vec<(f64, f64)>,
) -> Vec<Panel> {
    let cells = kinds(records, |r| (&*r.data, &*r.model, &r.scale));
    let panel = |(data, model, scale): (&str, &str, &Scale), machine: Option<&str>| {
        let own =
            records.iter().filter(|r| (&*r.data, &*r.model, &r.scale) == (data, model, scale));
        let own: Vec<&Record> = own.filter(|r| machine.is_none_or(|m| r.machine == m)).collect();
        let line = |(kind, way): (usize, &Strategy)| {
            let runs: Vec<&Record> =
                own.iter().filter(|r| r.strategy == way.name).copied().collect();
            let points = if runs.is_empty() { Vec::new() } else { points(&runs) };
            (!points.is_empty()).then_some(Line { kind, points })
        };
        let lines: Vec<Line> = STRATEGIES.iter().enumerate().filter_map(line).collect();
        let set = Set::named(data).map_or(data, |set| set.title);
        // What this scale says and another one of the net does not.
        let scales = cells.iter().filter(|cell| (cell.0, cell.1) == (data, model));
        let scales: Vec<String> = scales.map(|cell| cell.2.to_string()).collect();
        let scale = scale.to_string();
        let own = scale.split(", ").filter(|part| {
            scales.iter().any(|other| !other.split(", ").any(|theirs| theirs == *part))
        });
        let title: Vec<&str> = [set, model].into_iter().chain(own).chain(machine).collect();
        let title = title.join(", ");
        (!lines.is_empty()).then_some(Panel { title, lines })
    };
    let all = cells.iter().flat_map(|cell| machines.iter().map(move |m| (*cell, *m)));
    all.filter_map(|(cell, machine)| panel(cell, machine)).collect()
}
