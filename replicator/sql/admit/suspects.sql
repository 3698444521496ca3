-- Rows that cannot be logged (with the reason) or need a closer look (no reason).
select
    row_index,
    case
        when op = 'd' and key is null and payload is null then 'a delete needs the `key` of what it deletes'
        when payload is null then null
        when not json_valid(payload) then 'the payload is not JSON'
        when json_type(payload) <> 'OBJECT' then 'the payload is JSON but not an object (' || lower(json_type(payload)) || ')'
    end as reason
from decoded_changes
where case
    when payload is null then key is null
    when not json_valid(payload) then true
    else json_type(payload) <> 'OBJECT'
        or regexp_matches(payload, ',\s*[}\]]|[:\[,]\s*-?(?:[0-9][0-9.eE+-]{15,}|[nN][aA]|[iI])')
end
order by row_index
