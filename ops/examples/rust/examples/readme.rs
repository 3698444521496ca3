//! What README shows.

use db_manager::{DbManager, Result};
use serde_json::json;

fn main() -> Result<()> {
    let manager = DbManager::new("config/duckdb_rust_config.toml")?;
    let entry =
        manager.upsert("trades", &json!({"trade_id": "T6", "symbol": "AAPL", "price": "189.25", "quantity": 10}))?;
    let answer = manager.execute_query_after(&entry, "select price from trades where trade_id = ?", &[json!("T6")])?;
    let report = manager.sync_to_clickhouse()?;
    println!("{:?} {report}", answer.rows);
    Ok(())
}
