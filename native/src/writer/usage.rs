//! The token usage in an agent's output, as `codec.semconv` reads and writes it.

use memchr::memmem;
use pyo3::FromPyObject;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::wire::{put_double, put_integer, put_string};
use crate::json::object;

/// How attributes name what an agent used.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct Keys {
    input_tokens: Vec<u8>,
    output_tokens: Vec<u8>,
    cost: Vec<u8>,
    model: Vec<u8>,
    provider: Vec<u8>,
    /// The providers by how the names of their models begin.
    providers: Vec<(String, String)>,
    /// Bytes of the name of a model.
    max_model_bytes: usize,
    total_input_tokens: Vec<u8>,
    total_output_tokens: Vec<u8>,
    total_cost: Vec<u8>,
}

#[derive(Deserialize)]
struct Output<'a> {
    #[serde(default, borrow)]
    usage: Option<&'a RawValue>,
}

/// `semconv.Usage`, with the same defaults.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage<'a> {
    #[serde(default = "unknown")]
    pub prompt_tokens: i64,
    #[serde(default = "unknown")]
    pub completion_tokens: i64,
    #[serde(default)]
    pub model: &'a str,
    #[serde(default = "unknown_cost")]
    pub estimated_cost_usd: f64,
}

fn unknown() -> i64 {
    -1
}

fn unknown_cost() -> f64 {
    -1.0
}

/// Return the usage in an output if there is one; None if it has not the form that the platform writes.
pub fn read(output: &[u8]) -> Option<Option<Usage<'_>>> {
    if memmem::find(output, b"\"usage\"").is_none() {
        return Some(None);
    }
    match object::<Output>(std::str::from_utf8(output).ok()?)?.usage {
        Some(usage) => object(usage.get()).map(Some),
        None => Some(None),
    }
}

impl Keys {
    /// Append the attributes of a step; return None for a model whose name is too long.
    pub fn put(&self, out: &mut Vec<u8>, usage: &Usage) -> Option<()> {
        let model = usage.model;
        if model.len() > self.max_model_bytes {
            return None;
        }
        if !model.is_empty() {
            if let Some((_, provider)) = self.providers.iter().find(|(prefix, _)| model.starts_with(prefix.as_str())) {
                put_string(out, &self.provider, provider.as_bytes());
            }
            put_string(out, &self.model, model.as_bytes());
        }
        for (key, count) in [(&self.input_tokens, usage.prompt_tokens), (&self.output_tokens, usage.completion_tokens)]
        {
            if let Ok(count) = u64::try_from(count) {
                put_integer(out, key, count);
            }
        }
        if usage.estimated_cost_usd >= 0.0 {
            put_double(out, &self.cost, usage.estimated_cost_usd);
        }
        Some(())
    }

    /// Append the totals of the run of one or two agent steps, whose sum is the rounded one in whatever order.
    pub fn put_totals(&self, out: &mut Vec<u8>, usages: &[Counts]) {
        const INT64: u64 = 1 << 63;
        let sum =
            |count: fn(&Counts) -> i64| usages.iter().map(|usage| count(usage).max(0) as u64).sum::<u64>() % INT64;
        put_integer(out, &self.total_input_tokens, sum(|usage| usage.0));
        put_integer(out, &self.total_output_tokens, sum(|usage| usage.1));
        let cost: f64 = usages.iter().map(|usage| usage.2.max(0.0)).fold(0.0, |sum, cost| sum + cost);
        if cost.is_finite() {
            put_double(out, &self.total_cost, cost);
        }
    }
}

/// Prompt tokens, completion tokens and cost in dollars.
pub type Counts = (i64, i64, f64);
