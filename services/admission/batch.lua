-- Everything one replica asks of the shared store since its last call, done at once or not at all, and only once: the
-- same batch sent again is answered as before.
--
-- KEYS: leases, what this instance was answered last, the latest time seen, what requests of this instance have reserved,
-- then those that the operations name by number. ARGV[1]: msgpack of {replica, instance, batch, after, lease_ms, operations, now};
-- ARGV[2...]: bytes that the operations name by number. A replica is one process of an instance.

local batch = cmsgpack.unpack(ARGV[1])
local last = redis.call('HMGET', KEYS[2], 'batch', 'answer')
if last[1] == batch.batch then
  return last[2]
end

-- The clock is the store's; set back, it stands still.
local time = batch.now or redis.call('TIME')
local now = {s = tonumber(time[1]), ns = tonumber(time[2]) * (batch.now and 1 or 1000)}
local latest_s, latest_ns = string.match(redis.call('GET', KEYS[3]) or '0 0', '^(%d+) (%d+)$')
if before(now.s, now.ns, tonumber(latest_s), tonumber(latest_ns)) then
  now = {s = tonumber(latest_s), ns = tonumber(latest_ns)}
end
redis.call('SET', KEYS[3], integer(now.s) .. ' ' .. integer(now.ns))

local now_ms = now.s * 1000 + math.floor(now.ns / 1000000)
local replicas = {me = batch.replica, living = {}}
local leases = redis.call('HGETALL', KEYS[1])
local instance = batch.instance .. ' '
for index = 1, #leases, 2 do
  -- An earlier process of the same instance is dead: there is one at a time.
  local is_ours = string.sub(leases[index], 1, #instance) == instance
  if tonumber(leases[index + 1]) > now_ms and (not is_ours or leases[index] == replicas.me) then
    replicas.living[leases[index]] = true
  else
    redis.call('HDEL', KEYS[1], leases[index])
  end
end
local had_lease = replicas.living[replicas.me] or false
replicas.living[replicas.me] = true
redis.call('HSET', KEYS[1], replicas.me, integer(now_ms + batch.lease_ms))

local OPERATIONS = {
  reserve = function(operation)
    local answer = reserve(operation[2], operation[3], now, replicas)
    if answer[1] then
      redis.call('HSET', KEYS[4], operation[2], operation[4])
    end
    return answer
  end,
  adjust = function(operation)
    if operation[4] == 'gone' then
      redis.call('HDEL', KEYS[4], operation[2])
    elseif operation[4] ~= '' then
      redis.call('HSET', KEYS[4], operation[2], operation[4])
    end
    return adjust(operation[2], operation[3], now, replicas)
  end,
  hold = function(operation) return hold(operation[2], replicas) end,
  keep = function(operation) return keep(operation[2]) end,
  exchange = function(operation) return exchange(operation[2], operation[3], now_ms, replicas) end,
}

local answers = {}
-- The store has lost what it was told last, or everything: what this batch changes is nothing without it.
if batch.after ~= '' and last[1] ~= batch.after then
  return cmsgpack.pack({false, {now.s, now.ns}, 1, answers})
end
for index, operation in ipairs(batch.operations) do
  answers[index] = OPERATIONS[operation[1]](operation)
end
save_limits(replicas)
local num_replicas = redis.call('HLEN', KEYS[1])
local answer = cmsgpack.pack({had_lease, {now.s, now.ns}, num_replicas, answers})
redis.call('HSET', KEYS[2], 'batch', batch.batch, 'answer', answer)
redis.call('PEXPIRE', KEYS[2], 86400000)
return answer
