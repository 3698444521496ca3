//! `db_manager CONFIG query SQL [VALUE…]` prints rows; `upsert STREAM JSON` and `delete STREAM JSON` write;
//! `sync` delivers; `watch SECONDS SQL` asks again and again, and ends with 1 when an answer's columns differ.

use std::{env, process::ExitCode, time::Duration, time::Instant};

use db_manager::{DbManager, Error, Result};
use serde_json::{json, Value};

const USAGE: &str =
    "db_manager CONFIG query SQL [VALUE…] | upsert STREAM JSON | delete STREAM JSON | sync | watch SECONDS SQL";

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    match run(&words) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("Error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(words: &[String]) -> Result<bool> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let [config, verb, rest @ ..] = words.as_slice() else { return Err(Error::Config(USAGE.to_string())) };
    let manager = DbManager::new(config)?;
    match (*verb, rest) {
        ("query", [sql, values @ ..]) => {
            let values: Vec<Value> = values.iter().map(|value| json!(value)).collect();
            for row in manager.execute_query(sql, &values)?.rows {
                println!("{}", Value::Object(row));
            }
        }
        ("upsert", [stream, row]) => println!("{}", manager.upsert(stream, &parsed(row)?)?.id),
        ("delete", [stream, key]) => println!("{}", manager.delete(stream, &parsed(key)?)?.id),
        ("write-and-read", [stream, row, sql]) => {
            let entry = manager.upsert(stream, &parsed(row)?)?;
            for row in manager.execute_query_after(&entry, sql, &[])?.rows {
                println!("{}", Value::Object(row));
            }
        }
        ("sync", []) => {
            let report = manager.sync_to_clickhouse()?;
            println!("{report}");
            return Ok(report["delivered"] == json!(true));
        }
        ("watch", [seconds, sql]) => return watch(&manager, seconds, sql),
        _ => return Err(Error::Config(USAGE.to_string())),
    }
    Ok(true)
}

/// Asks until the time is up. Each answer has one row, whose columns must be equal and never fall.
fn watch(manager: &DbManager, seconds: &str, sql: &str) -> Result<bool> {
    let seconds = seconds.parse().map_err(|_| Error::Config(format!("{seconds} is no number of seconds")))?;
    let (end, mut asked, mut last) = (Instant::now() + Duration::from_secs(seconds), 0u64, 0u64);
    while Instant::now() < end {
        let answer = manager.execute_query(sql, &[])?;
        let values: Vec<u64> = answer.rows[0].values().filter_map(Value::as_u64).collect();
        if values.is_empty() || values.iter().any(|value| *value != values[0]) || values[0] < last {
            println!("{}", json!({"asked": asked, "inconsistent": answer.rows[0], "before": last}));
            return Ok(false);
        }
        (asked, last) = (asked + 1, values[0]);
    }
    println!("{}", json!({"asked": asked, "last": last}));
    Ok(true)
}

fn parsed(text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|error| Error::Config(format!("{text} is no JSON: {error}")))
}
