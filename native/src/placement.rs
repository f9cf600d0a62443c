//! Where steps lie and which loops contain them, as in `runspan.codec.placement`.

use std::collections::HashMap;

const MAX_DEPTH: usize = 64;

/// What is known of a step.
pub struct Place<'a> {
    pub id: &'a [u8],
    pub is_loop: bool,
    /// Start and end in nanoseconds since 1970.
    pub start: Option<u64>,
    pub end: Option<u64>,
}

/// The positions of the steps without times.
pub fn positions(steps: &[Place<'_>], first: u64, last: Option<u64>) -> Vec<Option<u64>> {
    let mut latest = first;
    let position = |step: &Place<'_>| {
        if step.start.is_none() && step.end.is_none() {
            return Some(last.map_or(latest, |last| latest.min(last.saturating_sub(1))).max(first));
        }
        latest = latest.max(step.start.unwrap_or(0)).max(step.end.unwrap_or(0));
        None
    };
    steps.iter().map(position).collect()
}

/// The innermost loop around each step that is a round, both by index: outer rounds before those inside of them.
pub fn enclosing_loops(steps: &[Place<'_>], positions: &[Option<u64>]) -> Vec<(usize, usize)> {
    if !steps.iter().any(|step| step.is_loop) {
        return Vec::new();
    }
    let mut counts: HashMap<&[u8], usize> = HashMap::new();
    for step in steps {
        *counts.entry(step.id).or_default() += 1;
    }
    let mut order: Vec<(u64, std::cmp::Reverse<u64>, usize)> = steps
        .iter()
        .zip(positions)
        .enumerate()
        .map(|(index, (step, position))| {
            let start = step.start.or(step.end).or(*position).unwrap_or(0);
            let end = step.end.filter(|&end| end >= start).unwrap_or(start);
            (start, std::cmp::Reverse(end), index)
        })
        .collect();
    order.sort_unstable();
    let mut found = Vec::new();
    let mut loops: Vec<(u64, usize)> = Vec::new();
    for (start, std::cmp::Reverse(end), index) in order {
        while loops.last().is_some_and(|&(loop_end, _)| loop_end < start) {
            loops.pop();
        }
        let Some(step) = steps.get(index) else { continue };
        if counts.get(step.id).is_some_and(|&count| count > 1) {
            let inner = loops.iter().rev().take(MAX_DEPTH);
            found.extend(inner.filter(|&&(loop_end, _)| loop_end >= end).map(|&(_, outer)| (index, outer)).next());
        }
        if step.is_loop && step.start.is_some() {
            loops.push((end, index));
        }
    }
    found
}
