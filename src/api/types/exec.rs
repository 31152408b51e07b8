//! Commands run in a container beside its own.

use serde::{Deserialize, Serialize};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct ExecCreate {
    pub(in crate::api) user: String,
    pub(in crate::api) privileged: bool,
    pub(in crate::api) tty: bool,
    pub(in crate::api) attach_stdin: bool,
    pub(in crate::api) attach_stdout: bool,
    pub(in crate::api) attach_stderr: bool,
    pub(in crate::api) detach_keys: String,
    pub(in crate::api) env: Vec<String>,
    pub(in crate::api) working_dir: String,
    pub(in crate::api) cmd: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct ExecCreated {
    pub(in crate::api) id: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::api) struct ExecStart {
    pub(in crate::api) detach: bool,
    /// Rows and columns.
    pub(in crate::api) console_size: Option<Vec<u16>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct ExecInspect {
    #[serde(rename = "ID")]
    pub(in crate::api) id: String,
    pub(in crate::api) running: bool,
    pub(in crate::api) exit_code: Option<i32>,
    pub(in crate::api) process_config: ProcessConfig,
    pub(in crate::api) open_stdin: bool,
    pub(in crate::api) open_stderr: bool,
    pub(in crate::api) open_stdout: bool,
    pub(in crate::api) can_remove: bool,
    #[serde(rename = "ContainerID")]
    pub(in crate::api) container_id: String,
    pub(in crate::api) detach_keys: String,
    pub(in crate::api) pid: u32,
}

#[derive(Debug, Serialize)]
pub(in crate::api) struct ProcessConfig {
    pub(in crate::api) tty: bool,
    pub(in crate::api) entrypoint: String,
    pub(in crate::api) arguments: Vec<String>,
    pub(in crate::api) privileged: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::api) user: String,
}
