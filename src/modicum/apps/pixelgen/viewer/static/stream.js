// Views from the server, one message each: u32 length of the header | header (JSON) | pictures.

const FIRST_WAIT = 500, LONGEST_WAIT = 8000;

export function parsed(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const known = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const pictures = {};
  let place = 4 + length;
  for (const { name, type, size } of known.parts) {
    pictures[name] = new Blob([new Uint8Array(buffer, place, size)], { type });
    place += size;
  }
  return { known, pictures };
}

/** Calls `shown(known, pictures)` for every view and `changed(open)` when the connection opens or is lost. */
export function follow(shown, changed) {
  let wait = FIRST_WAIT;
  const connect = () => {
    const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/views`);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => { wait = FIRST_WAIT; changed(true); };
    socket.onmessage = ({ data }) => { const view = parsed(data); shown(view.known, view.pictures); };
    socket.onclose = () => {
      changed(false);
      setTimeout(connect, wait);
      wait = Math.min(2 * wait, LONGEST_WAIT);
    };
  };
  connect();
}
