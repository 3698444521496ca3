-- What operators have asked for, newest first.
select id, asked_at, actor, action, subject, effect from operator_actions order by id desc limit $limit
