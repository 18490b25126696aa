// IndexedDB with promises. Each `write` is one transaction: all of it is kept, or nothing.

const NAME = "satori";
const STORES = ["index", "conversations", "damaged"]; // each by `id`; the index has what the list of conversations shows

const settled = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

export class Database {
  // Raises what the browser raises where it keeps nothing for this page.
  static async open() {
    if (!globalThis.indexedDB) throw new DOMException("no IndexedDB", "NotSupportedError");
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => STORES.forEach((name) => request.result.createObjectStore(name, { keyPath: "id" }));
    const database = new Database();
    database.connection = await settled(request);
    database.connection.onversionchange = () => database.connection.close();
    return database;
  }

  get(store, id) {
    return settled(this.connection.transaction(store).objectStore(store).get(id));
  }

  all(store) {
    return settled(this.connection.transaction(store).objectStore(store).getAll());
  }

  // `work` gets functions `get`, `put` and `remove`, and may wait for nothing else. Returns what it returns, once that is kept.
  async write(work) {
    const transaction = this.connection.transaction(STORES, "readwrite");
    const kept = new Promise((resolve, reject) => {
      transaction.oncomplete = resolve;
      transaction.onabort = () => reject(transaction.error);
    });
    const store = (name) => transaction.objectStore(name);
    const value = work({
      get: (name, id) => settled(store(name).get(id)),
      put: (name, record) => settled(store(name).put(record)),
      remove: (name, id) => settled(store(name).delete(id)),
    });
    try {
      await value;
    } catch (error) {
      kept.catch(() => {});
      if (!transaction.error) transaction.abort();
      throw error;
    }
    await kept;
    return value;
  }
}
