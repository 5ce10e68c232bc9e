//! `orlop image`: build, load, pull, list, remove.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use orlop_image::ImageConfig;
use orlop_image::build::{ImageBuilder, LayerBuilder};
use orlop_image::cli::{self, CliConfig};

use crate::layout::Layout;

/// What to do with images.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Make an image from files, without a registry; the result is an archive for `load`.
    ///
    /// Example: orlop image build --file ./server:/server --entrypoint /server --output app.tar localhost/app:1
    Build {
        /// A file and its place in the image; may be repeated.
        #[arg(long = "file", value_name = "FILE:PATH", required = true)]
        files: Vec<String>,
        /// Program that the image runs.
        #[arg(long, value_name = "PATH")]
        entrypoint: String,
        /// The archive to write.
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
        /// Name of the image, as pods will name it: localhost/app:1.
        name: String,
    },
    /// Load an OCI layout (folder or archive) or a `docker save` archive.
    ///
    /// Pods use what was loaded with imagePullPolicy: IfNotPresent or Never.
    Load {
        /// The folder or archive.
        path: PathBuf,
        /// Names to give it, beside those that it brings.
        names: Vec<String>,
    },
    /// Pull an image from its registry; plain http for loopback registries only.
    Pull {
        /// Its reference: docker.io/library/busybox:1.36, or a name with @sha256:…
        reference: String,
    },
    /// List the images that are there.
    #[command(alias = "ls")]
    List,
    /// Remove an image with all of its names; layers that a container stands on stay until it is removed.
    Rm {
        /// A name, an id or the beginning of one.
        name: String,
    },
}

/// Runs one of them, by the daemon where it runs and on the store itself where not.
pub async fn run(layout: &Layout, command: Command) -> Result<()> {
    let config =
        CliConfig { socket: layout.run.join("cri/image.sock"), images: ImageConfig::new(layout.state.join("cri")) };
    match command {
        Command::Build { files, entrypoint, output, name } => {
            let mut layer = LayerBuilder::new();
            for file in &files {
                let Some((host, place)) = file.rsplit_once(':').filter(|(_, place)| place.starts_with('/')) else {
                    bail!("--file {file:?}: give FILE:/PATH/IN/THE/IMAGE");
                };
                layer = layer.host_file(place, host, 0o755);
            }
            let image = ImageBuilder::new().layer(layer).entrypoint([entrypoint]);
            image.write_layout_tar(&output, &name).with_context(|| format!("write {}", output.display()))?;
            println!("{}", output.display());
        }
        Command::Load { path, names } => {
            for id in cli::load(&config, &path, names).await? {
                println!("{id}");
            }
        }
        Command::Pull { reference } => println!("{}", cli::pull(&config, &reference, None).await?),
        Command::List => print!("{}", cli::table(&cli::list(&config).await?)),
        Command::Rm { name } => cli::remove(&config, &name).await?,
    }
    Ok(())
}
