//! Dropping versions of secrets and configs that nobody uses.

use std::collections::BTreeMap;

use serde::Deserialize;
use skep_core::id::MaterialId;
use skep_core::limits;
use skep_core::model::material::{Material, MaterialKind, check_keep};
use skep_core::outcome::Dropped;
use skep_core::state::State;

use super::call::{Call, read_json};
use super::error::ApiError;
use super::lookup;
use super::reply::{self, Outcome};
use super::types::material as wire;
use crate::gate::{Done, Refusal, Request, look};

/// What was sent.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Sent {
    /// Names or ids; empty for all.
    names: Vec<String>,
    /// How many versions each keeps; none for what each says itself.
    keep: Option<u32>,
    /// Whether nothing is to be dropped, but only looked for.
    dry_run: bool,
}

pub(super) async fn serve(kind: MaterialKind, call: Call) -> Outcome {
    let Sent { names, keep, dry_run } = read_json(&call.headers, call.body).await?;
    check_keep(keep).map_err(Refusal::Rejected)?;
    if names.len() > limits::PRUNE {
        let word = kind.kind().word();
        return Err(ApiError::invalid(&format!(
            "{} {word}s were named to prune: name {} at most, or none for all",
            names.len(),
            limits::PRUNE
        )));
    }
    let ids = look(&*call.gate, |state| {
        let found = names.iter().map(|name| lookup::material(state, kind, name));
        let ids = found.map(|found| found.map(|material| material.id));
        let mut ids = ids.collect::<Result<Vec<MaterialId>, ApiError>>()?;
        ids.sort_unstable();
        ids.dedup();
        Ok::<_, ApiError>(ids)
    });
    let ids = ids.await??;
    let dropped = if dry_run {
        look(&*call.gate, |state| surplus(state, kind, &ids, keep)).await?
    } else {
        match call.gate.submit(Request::MaterialPrune { kind, ids, keep }).await? {
            Done::Pruned(dropped) => dropped,
            other => return Err(ApiError::failed(format!("a prune was answered with {other:?}"))),
        }
    };
    reply::ok(&look(&*call.gate, |state| show(state, &dropped, dry_run)).await?)
}

/// What a prune would drop now.
fn surplus(
    state: &State,
    kind: MaterialKind,
    ids: &[MaterialId],
    keep: Option<u32>,
) -> Vec<Dropped> {
    let of = |material: &Material| -> Vec<Dropped> {
        let keep = keep.map_or(material.keep(), |keep| keep as usize);
        let surplus = state.surplus(material, keep);
        let versions = surplus.iter().filter_map(|number| material.version(*number));
        let id = material.id;
        versions
            .map(|version| Dropped { id, version: version.number, size: version.size })
            .collect()
    };
    match ids {
        [] => state.materials().filter(|m| m.kind == kind).flat_map(|m| of(m)).collect(),
        ids => ids.iter().filter_map(|id| state.material(id)).flat_map(|m| of(m)).collect(),
    }
}

fn show(state: &State, dropped: &[Dropped], dry_run: bool) -> wire::Pruned {
    let mut items: BTreeMap<MaterialId, wire::PrunedOne> = BTreeMap::new();
    for Dropped { id, version, size } in dropped {
        let one = items.entry(*id).or_insert_with(|| wire::PrunedOne {
            id: id.to_string(),
            // It may have been removed since.
            name: state.material(id).map_or_else(|| id.to_string(), |m| m.spec.name.clone()),
            versions: Vec::new(),
            bytes: 0,
        });
        one.versions.push(*version);
        one.bytes += size;
    }
    let mut items: Vec<wire::PrunedOne> = items.into_values().collect();
    items.sort_by(|a, b| a.name.cmp(&b.name));
    let space_reclaimed = items.iter().map(|one| one.bytes).sum();
    wire::Pruned { items, space_reclaimed, dry_run }
}
