//! The files in which a result leaves, beside the table on standard output.

use crate::{
    observer::Observed,
    report::{Report, hlog, html, to_json},
    verdict::Verdict,
};
use anyhow::{Context, bail};
use serde::Serialize;
use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Outputs {
    /// Write the result to FILE as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the result to FILE as a page with charts, which needs nothing else
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write the times of each second to FILE, for the tools of HdrHistogram
    #[arg(long, value_name = "FILE")]
    pub hlog: Option<PathBuf>,
}

/// A result in the forms in which it leaves.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub verdict: Verdict,
    table: String,
    json: String,
    html: String,
    observed: Observed,
}

impl Outcome {
    /// `all` is what the JSON file has; `report` the part of it that every plan has.
    pub(crate) fn new(
        all: &impl Serialize,
        report: &Report,
        table: String,
        observed: Observed,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            verdict: report.verdict,
            json: to_json(all).context("the result cannot be written as JSON")?,
            html: html::page(report, &table),
            table,
            observed,
        })
    }

    /// Of several runs, with their common verdict: page and interval log are those of the last.
    pub(crate) fn of_several(self, verdict: Verdict) -> Self {
        Self { verdict, ..self }
    }
}

/// Created before the run, which may be long, so that a wrong path does not cost its result; and
/// so that no result of an earlier run is left behind by one that has none.
#[derive(Debug)]
pub(crate) struct Files {
    json: Option<Output>,
    html: Option<Output>,
    hlog: Option<Output>,
}

#[derive(Debug)]
struct Output {
    path: PathBuf,
    file: File,
}

impl Files {
    pub(crate) fn create(outputs: &Outputs) -> anyhow::Result<Self> {
        let create = |path: &Option<PathBuf>| path.as_deref().map(Output::create).transpose();
        let files = Self {
            json: create(&outputs.json)?,
            html: create(&outputs.html)?,
            hlog: create(&outputs.hlog)?,
        };
        files.check_different()?;
        Ok(files)
    }

    /// Each result in a file of its own. Devices and pipes may take several.
    fn check_different(&self) -> anyhow::Result<()> {
        let all = [&self.json, &self.html, &self.hlog];
        let mut known = Vec::new();
        for output in all.into_iter().flatten() {
            let file = output.file.metadata().context("cannot look at a file")?;
            let identity = (file.dev(), file.ino());
            if file.is_file() && known.contains(&identity) {
                bail!(
                    "--json, --html and --hlog must be different files; {} is named twice",
                    output.path.display()
                );
            }
            known.push(identity);
        }
        Ok(())
    }

    /// Prints the table and fills the files. What cannot be written costs nothing else.
    pub(crate) fn write(self, outcome: &Outcome) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        let table = out.write_all(outcome.table.as_bytes());
        let json = self
            .json
            .map(|json| json.write(|file| Ok(writeln!(file, "{}", outcome.json)?)));
        let html = self
            .html
            .map(|html| html.write(|file| Ok(file.write_all(outcome.html.as_bytes())?)));
        let hlog = self
            .hlog
            .map(|output| output.write(|file| hlog::write(file, &outcome.observed)));
        table.context("cannot print the result")?;
        [json, html, hlog].into_iter().flatten().collect()
    }

    /// There is no result.
    pub(crate) fn remove(self) -> io::Result<()> {
        let outputs = [self.json, self.html, self.hlog];
        outputs.into_iter().flatten().try_for_each(Output::remove)
    }
}

impl Output {
    fn create(path: &Path) -> anyhow::Result<Self> {
        let file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        let path = path.to_owned();
        Ok(Self { path, file })
    }

    fn write(
        self,
        fill: impl FnOnce(&mut BufWriter<File>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut file = BufWriter::new(self.file);
        fill(&mut file)
            .and_then(|()| Ok(file.flush()?))
            .with_context(|| format!("cannot write the result to {}", self.path.display()))
    }

    /// Only what [`Self::create`] may have made: not a device or a pipe.
    fn remove(self) -> io::Result<()> {
        if fs::symlink_metadata(&self.path)?.is_file() {
            fs::remove_file(&self.path)?;
        }
        Ok(())
    }
}
