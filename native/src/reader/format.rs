//! What Python says about the format: names of attributes and members, and the rules around them.

use std::collections::HashMap;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// The constants in `runspan.codec.fields`.
#[derive(FromPyObject)]
pub struct Names {
    #[pyo3(attribute("ROLE"))]
    pub role: String,
    #[pyo3(attribute("ROLE_RUN"))]
    pub role_run: String,
    #[pyo3(attribute("ROLE_STEP"))]
    pub role_step: String,
    #[pyo3(attribute("SCOPE_RUN"))]
    pub scope_run: String,
    #[pyo3(attribute("SCOPE_STEP"))]
    pub scope_step: String,
    #[pyo3(attribute("REVISION"))]
    pub revision: String,
    #[pyo3(attribute("ROOT_REVISION"))]
    pub root_revision: i64,
    #[pyo3(attribute("RUN_ID"))]
    pub run_id: String,
    #[pyo3(attribute("WORKFLOW_ID"))]
    pub workflow_id: String,
    #[pyo3(attribute("TENANT"))]
    pub tenant: String,
    #[pyo3(attribute("DIGEST"))]
    pub digest: String,
    #[pyo3(attribute("STEP_COUNT"))]
    pub step_count: String,
    #[pyo3(attribute("MANIFEST"))]
    pub manifest: String,
    #[pyo3(attribute("NON_CANONICAL"))]
    pub non_canonical: String,
    #[pyo3(attribute("ABSENT"))]
    pub absent: String,
    #[pyo3(attribute("TEXT_KEY"))]
    pub text_key: String,
}

/// What the format says that is no name.
#[derive(FromPyObject)]
pub struct Rules {
    pub terminal_run_statuses: Vec<String>,
    pub terminal_step_statuses: Vec<String>,
    pub loop_type: String,
    pub id_domain: Vec<u8>,
    pub max_run_id_bytes: usize,
    pub max_pipeline_bytes: usize,
    pub max_parts: usize,
    pub own_prefix: String,
    pub latest_start: u64,
    pub latest_end: u64,
    pub is_hashed: bool,
}

pub enum Kind {
    Text,
    Integer,
    Payload,
    Start,
    End,
}

/// A member that is carried by a span.
pub struct Member {
    pub kind: Kind,
    /// Its name in the document, with quotes and colon.
    pub name: Vec<u8>,
    pub is_in_summary: bool,
}

/// What an attribute says.
#[derive(Clone, Copy)]
pub enum Meaning {
    Member(usize),
    Role,
    Revision,
    RunId,
    Tenant,
    Digest,
    StepCount,
    Manifest,
    StartText,
    EndText,
    /// Nothing that the decoder reads on such a span.
    Ignored,
}

/// The members of a span and the meanings of its attributes.
pub struct Table {
    pub members: Vec<Member>,
    pub meanings: HashMap<String, Meaning>,
    /// The places of members that decide how the span is read.
    pub id: Option<usize>,
    pub kind: Option<usize>,
    pub status: Option<usize>,
    pub workflow: Option<usize>,
}

/// Attribute key, member, name in the document, kind, and whether a list item has it.
pub type Row = (String, String, String, String, bool);

impl Table {
    fn new(names: &Names, rows: Vec<Row>) -> PyResult<Table> {
        let mut table =
            Table { members: vec![], meanings: HashMap::new(), id: None, kind: None, status: None, workflow: None };
        for (index, (key, member, name, kind, is_in_summary)) in rows.into_iter().enumerate() {
            match member.as_str() {
                "id" => table.id = Some(index),
                "type" => table.kind = Some(index),
                "status" => table.status = Some(index),
                "workflow_id" => table.workflow = Some(index),
                _ => {}
            }
            let kind = match kind.as_str() {
                "LABEL" | "TEXT" => Kind::Text,
                "INTEGER" => Kind::Integer,
                "PAYLOAD" => Kind::Payload,
                "START" => Kind::Start,
                "END" => Kind::End,
                _ => return Err(PyValueError::new_err(format!("kind {kind} of {key}"))),
            };
            let (key, meaning) = match kind {
                Kind::Start => (key + &names.non_canonical, Meaning::StartText),
                Kind::End => (key + &names.non_canonical, Meaning::EndText),
                _ => (key, Meaning::Member(index)),
            };
            table.meanings.insert(key, meaning);
            table.members.push(Member { kind, name: format!("\"{name}\":").into_bytes(), is_in_summary });
        }
        table.meanings.insert(names.role.clone(), Meaning::Role);
        Ok(table)
    }
}

/// All of it.
pub struct Format {
    pub names: Names,
    pub rules: Rules,
    pub run: Table,
    pub step: Table,
}

impl Format {
    /// `ignored`: keys of attributes that the decoder does not read.
    pub fn new(names: Names, rules: Rules, run: Vec<Row>, step: Vec<Row>, ignored: Vec<String>) -> PyResult<Format> {
        let mut run = Table::new(&names, run)?;
        let mut step = Table::new(&names, step)?;
        for key in ignored {
            run.meanings.insert(key.clone(), Meaning::Ignored);
            step.meanings.insert(key, Meaning::Ignored);
        }
        for (key, meaning) in [
            (&names.revision, Meaning::Revision),
            (&names.run_id, Meaning::RunId),
            (&names.tenant, Meaning::Tenant),
            (&names.digest, Meaning::Digest),
            (&names.step_count, Meaning::StepCount),
            (&names.manifest, Meaning::Manifest),
        ] {
            run.meanings.insert(key.clone(), meaning);
        }
        for key in [&names.run_id, &names.workflow_id] {
            step.meanings.insert(key.clone(), Meaning::Ignored);
        }
        Ok(Format { names, rules, run, step })
    }
}
