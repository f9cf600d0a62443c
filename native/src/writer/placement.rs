//! Where steps without times lie, and which loops contain others, as `codec.placement` decides it.

use std::cmp::Reverse;
use std::collections::HashMap;

use super::{Step, Time};

/// Loops that are tried as the parent of a step, innermost first.
const MAX_DEPTH: usize = 64;

/// Set the positions of the steps without times: the latest end of the steps before them, and before the run's end.
pub fn set_positions(steps: &mut [Step], first: u64, last: u64) {
    let mut latest = first;
    for step in steps {
        match (step.start, step.end) {
            (Time::Absent | Time::Null, Time::Absent | Time::Null) => {
                step.position = Some(first.max(latest.min(last.saturating_sub(1))));
            }
            (start, end) => latest = latest.max(start.or(0)).max(end.or(0)),
        }
    }
}

/// Return the innermost loop around each step that is a round, parents first, both by index.
pub fn enclosing_loops(steps: &[Step]) -> Vec<(usize, usize)> {
    if !steps.iter().any(|step| step.template.is_loop) {
        return Vec::new();
    }
    let mut counts: HashMap<&[u8], usize> = HashMap::new();
    for step in steps {
        *counts.entry(step.id).or_default() += 1;
    }
    // Those that start first and end last come first, so that each loop comes before its rounds.
    let mut intervals: Vec<_> = steps
        .iter()
        .enumerate()
        .map(|(index, step)| {
            let start = step.start.or(step.end.or(step.position.unwrap_or(0)));
            (start, Reverse(step.end.or(0).max(start)), index)
        })
        .collect();
    intervals.sort_unstable();
    let mut found = Vec::new();
    let mut open: Vec<(u64, usize)> = Vec::new();
    for (start, Reverse(end), index) in intervals {
        while open.last().is_some_and(|&(loop_end, _)| loop_end < start) {
            open.pop();
        }
        let step = &steps[index];
        if counts[step.id] > 1 {
            let around = open.iter().rev().take(MAX_DEPTH).find(|(loop_end, _)| *loop_end >= end);
            found.extend(around.map(|&(_, parent)| (index, parent)));
        }
        if step.template.is_loop && matches!(step.start, Time::Canonical(_)) {
            open.push((end, index));
        }
    }
    found
}
