//! `--model`: a bundled model by its name, a folder, or an id on the hub, to a folder on this machine.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use blip2_model::weights::hub;

use super::progress::Downloads;

/// The bundled model that speaks, and the default of `--model`.
pub(super) const NANO: &str = "nano";

/// The bundled model that was tuned for retrieval last, and the default of the verbs that compare pictures and texts.
pub(super) const NANO_ITM: &str = "nano-itm";

/// A model that comes with the program.
pub(super) struct Bundled {
    /// What `--model` calls it, and the name of its folder.
    pub name: &'static str,
    /// What it is for.
    pub purpose: &'static str,
    /// A published checkpoint of its kind.
    published: &'static str,
}

/// All of them.
pub(super) const BUNDLED: [Bundled; 2] = [
    Bundled {
        name: NANO,
        purpose: "bundled: every command works with it",
        published: "Salesforce/blip2-opt-2.7b",
    },
    Bundled {
        name: NANO_ITM,
        purpose: "bundled: match, search, embed",
        published: "Salesforce/blip2-itm-vit-g",
    },
];

/// Names the folder of `nano` for programs that ship it elsewhere; `nano-itm` is then looked for beside it.
const NANO_VARIABLE: &str = "BLIP2_NANO";

const CONFIG: &str = "config.json";

/// Where a bundled model may be, best first.
fn places(name: &str) -> Vec<PathBuf> {
    let named = std::env::var_os(NANO_VARIABLE).map(PathBuf::from);
    let named = named.map(|nano| match name {
        NANO => nano,
        other => nano.with_file_name(other),
    });
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.join("assets/models").join(name)));
    let tree = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../assets/models")
        .join(name);
    named.into_iter().chain(beside).chain([tree]).collect()
}

/// Folder of a bundled model, if it is there.
pub(super) fn bundled(name: &str) -> Option<PathBuf> {
    places(name).into_iter().find(|place| place.join(CONFIG).exists())
}

/// The folder of `model`, downloaded if it is a hub id that the cache lacks.
pub(super) fn folder(model: &str, offline: bool, quiet: bool) -> Result<PathBuf> {
    if let Some(Bundled { name, published, .. }) = BUNDLED.iter().find(|bundled| bundled.name == model) {
        return bundled(name).with_context(|| {
            let places: Vec<String> = places(name).iter().map(|p| p.display().to_string()).collect();
            format!(
                "the bundled model `{name}` is not here (looked in {}); name a checkpoint with --model, for example \
                 --model {published} (see `blip2 models`), or set {NANO_VARIABLE} to the folder of `{NANO}`",
                places.join(", ")
            )
        });
    }
    let path = Path::new(model);
    if hub::is_local(model) {
        if !path.exists()
            && let Some(entry) = blip2_model::catalogue::find(model)
        {
            bail!(
                "--model {model}: no such folder; the published checkpoint is --model {}",
                entry.id
            );
        }
        return Ok(path.to_path_buf());
    }
    let id = model
        .parse::<hub::HubId>()
        .with_context(|| format!("--model {model}"))?;
    let mut settings = hub::HubSettings::from_env();
    settings.offline |= offline;
    Ok(hub::resolve(&id, &settings, &mut Downloads::new(quiet))?.folder)
}

/// The config.json of a hub id, fetched alone if the cache lacks it.
pub(super) fn config_of(id: &str) -> Result<PathBuf> {
    use hub::HubClient as _;
    let id = id
        .parse::<hub::HubId>()
        .with_context(|| format!("--model {id}"))?;
    let settings = hub::HubSettings::from_env();
    if settings.offline {
        return Ok(hub::resolve(&id, &settings, &mut ())?.folder.join(CONFIG));
    }
    let client = hub::HttpClient::new(&settings)?;
    let listing = client.list(&id)?;
    let file = listing.files.iter().find(|file| file.name == CONFIG);
    let file = file.with_context(|| format!("--model {id}: the repository has no {CONFIG}"))?;
    let cache = hub::RepoCache::new(&settings.cache, &id);
    if !cache.has(&listing.commit, file)? {
        client.fetch(&id, &listing.commit, file, &mut ())?;
    }
    Ok(cache.snapshot(&listing.commit).join(CONFIG))
}

/// The snapshot of a hub id in the cache, if it is complete.
pub(super) fn cached(id: &str) -> Option<PathBuf> {
    let mut settings = hub::HubSettings::from_env();
    settings.offline = true;
    let id = id.parse().ok()?;
    hub::resolve(&id, &settings, &mut ())
        .ok()
        .map(|snapshot| snapshot.folder)
}
