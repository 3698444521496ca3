-- Inserts of ours that an offset was in, oldest first; log_comment is pipeline/target/first-last/send/attempt.
select
    query_start_time_microseconds, parts[4], toUInt32OrZero(parts[5]), first_offset, last_offset,
    if(type = 'QueryFinish', 'done', 'failed'), nullIf(exception_code, 0), query_id
from (
    select
        *,
        splitByChar('/', log_comment) as parts,
        toInt64OrZero(splitByChar('-', parts[3])[1]) as first_offset,
        toInt64OrZero(splitByChar('-', parts[3])[2]) as last_offset
    from system.query_log
    where event_date >= toDate({since:String}) - 1 and current_database = currentDatabase() and type != 'QueryStart'
        and arrayExists(prefix -> startsWith(log_comment, prefix), {prefixes:Array(String)})
)
where first_offset <= {offset:Int64} and last_offset >= {offset:Int64}
order by query_start_time_microseconds
limit {limit:UInt32}
