-- What replicas keep and exchange: the rows of each one's core, usage, and the counters of the fairness tree.

local KEPT_MS = 3600000
local NUM_COUNTERS = 200000
local NUM_CHANGES = 500

-- Keep what changed of this replica's core: rows by name, those that are gone, usage to add, the newest settled end.
local function keep(asked)
  local rows, reserved = KEYS[asked.rows], KEYS[asked.reserved]
  if asked.is_whole then
    redis.call('DEL', rows)
  end
  for _, row in ipairs(asked.kept) do
    redis.call('HSET', rows, 'row ' .. row[1], ARGV[row[2]])
  end
  for _, name in ipairs(asked.gone) do
    redis.call('HDEL', rows, 'row ' .. name)
  end
  for _, request in ipairs(asked.in_rows) do
    redis.call('HDEL', reserved, request)
  end
  redis.call('HSET', rows, 'settled', asked.settled, 'held', asked.held)
  for _, cell in ipairs(asked.usage) do
    redis.call('HINCRBY', KEYS[cell[1]], cell[2], integer(cell[3]))
    redis.call('PEXPIRE', KEYS[cell[1]], asked.usage_ms)
  end
  return true
end

-- The smallest of every floor that a living replica has told lately.
local function lowest(key, now_ms, fresh_ms, replicas)
  local found, told = {}, redis.call('HGETALL', key)
  for index = 1, #told, 2 do
    local at_ms, floors = unpack(cmsgpack.unpack(told[index + 1]))
    if not replicas.living[told[index]] then
      redis.call('HDEL', key, told[index])
    elseif told[index] ~= replicas.me and at_ms + fresh_ms >= now_ms then
      for _, row in ipairs(floors) do
        found[row[1]] = math.min(found[row[1]] or row[2], row[2])
      end
    end
  end
  local rows = {}
  for node, floor in pairs(found) do
    rows[#rows + 1] = {node, floor}
  end
  return rows
end

-- Add what this replica has charged and tell what changed since it asked last: {node, raised to, charged} each. A lift is
-- a level and not a charge: two replicas that lift a node at the same time lift it once.
local function exchange(keys, asked, now_ms, replicas)
  local counters, changes, floors = KEYS[keys[1]], KEYS[keys[2]], KEYS[keys[3]]
  local number = tonumber(redis.call('ZREVRANGE', changes, 0, 0, 'WITHSCORES')[2] or 0)
  for _, row in ipairs(asked.nodes) do
    local node, raised, charged = row[1], row[2], row[3]
    local shared = math.max(tonumber(redis.call('HGET', counters, node) or raised), raised) + charged
    number = number + 1
    redis.call('HSET', counters, node, string.format('%.17g', shared))
    redis.call('ZADD', changes, integer(number), node)
  end
  if #asked.nodes > 0 then
    for _, node in ipairs(redis.call('ZRANGE', changes, 0, -NUM_COUNTERS - 1)) do
      redis.call('HDEL', counters, node)
      redis.call('ZREM', changes, node)
    end
    redis.call('PEXPIRE', counters, KEPT_MS)
    redis.call('PEXPIRE', changes, KEPT_MS)
  end
  redis.call('HSET', floors, replicas.me, cmsgpack.pack({now_ms, asked.floors}))
  redis.call('PEXPIRE', floors, KEPT_MS)

  local since, shared = asked.since, {}
  -- Emptied since: from the beginning.
  if since > number then
    since = 0
  end
  local changed = redis.call('ZRANGEBYSCORE', changes, '(' .. integer(since), '+inf', 'WITHSCORES',
    'LIMIT', 0, NUM_CHANGES)
  for index = 1, #changed, 2 do
    shared[#shared + 1] = {changed[index], tonumber(redis.call('HGET', counters, changed[index]))}
    since = tonumber(changed[index + 1])
  end
  return {since, shared, lowest(floors, now_ms, asked.fresh_ms, replicas)}
end
